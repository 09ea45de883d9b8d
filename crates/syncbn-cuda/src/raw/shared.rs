//! Declarations that Rust and CUDA share, written once, in Rust. These macros make the Rust item and the CUDA text. The text has
//! assertions that its structs have Rust's layout, field by field, which NVRTC checks.

/// A type that Rust and CUDA share.
pub(super) trait Shared {
    /// The type in CUDA.
    const CUDA: &'static str;

    /// The declaration of a name of this type, without the type: arrays have their lengths behind the name.
    fn declarator(name: &str) -> String {
        name.to_owned()
    }
}

impl Shared for i32 {
    const CUDA: &'static str = "int";
}
impl Shared for u32 {
    const CUDA: &'static str = "unsigned";
}
impl Shared for i64 {
    const CUDA: &'static str = "long long";
}
impl Shared for u64 {
    const CUDA: &'static str = "unsigned long long";
}
impl Shared for f64 {
    const CUDA: &'static str = "double";
}
impl<T: Shared, const N: usize> Shared for [T; N] {
    const CUDA: &'static str = T::CUDA;

    fn declarator(name: &str) -> String {
        T::declarator(&format!("{name}[{N}]"))
    }
}

/// One field of a shared struct.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) cuda: &'static str,
    pub(super) declarator: String,
    pub(super) offset: usize,
}

/// A struct in CUDA, with assertions that its fields lie where Rust has them. NVRTC has no `offsetof`; its front end defines it with
/// `__INTADDR__`.
pub(super) fn declare_struct(name: &str, bytes: usize, fields: &[Field]) -> String {
    let declared = fields.iter().map(|Field { cuda, declarator, .. }| format!("    {cuda} {declarator};\n"));
    let checked = fields.iter().map(|Field { name: field, offset, .. }| {
        let address = format!("__INTADDR__(&(({name}*)0)->{field})");
        format!("static_assert({address} == {offset}, \"{name}.{field} is elsewhere in Rust\");\n")
    });
    let (declared, checked): (String, String) = (declared.collect(), checked.collect());
    let size = format!("static_assert(sizeof({name}) == {bytes}, \"{name} has another size in Rust\");\n");
    format!("struct {name} {{\n{declared}}};\n{checked}{size}")
}

/// Structs that kernels take or write, and `structs()`, their text in CUDA. `as` gives a field's type in CUDA where Rust has
/// only an address.
macro_rules! shared_structs {
    ($(
        $(#[$about:meta])*
        struct $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty $(as $cuda:literal)?,)* }
    )*) => {
        $(
            $(#[$about])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub(crate) struct $name { $($(#[$doc])* pub(crate) $field: $type,)* }

            impl Shared for $name {
                const CUDA: &'static str = stringify!($name);
            }
        )*

        fn structs() -> String {
            let mut text = String::new();
            $(text += &$crate::raw::shared::declare_struct(stringify!($name), size_of::<$name>(), &[$(
                $crate::raw::shared::Field {
                    name: stringify!($field),
                    cuda: [$($cuda,)? <$type as Shared>::CUDA][0],
                    declarator: <$type as Shared>::declarator(stringify!($field)),
                    offset: std::mem::offset_of!($name, $field),
                },
            )*]);)*
            text
        }
    };
}

/// Constants, and `constants()`, their text in CUDA.
macro_rules! shared_constants {
    ($($(#[$about:meta])* const $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[$about])* pub(crate) const $name: $type = $value;)*

        fn constants() -> String {
            [$(format!(concat!("constexpr int ", stringify!($name), " = {};\n"), $name)),*].concat()
        }
    };
}

/// An enum, and its text in CUDA.
macro_rules! shared_enum {
    ($(#[$about:meta])* enum $name:ident { $($(#[$doc:meta])* $variant:ident,)* }) => {
        $(#[$about])*
        #[repr(i32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$doc])* $variant,)* }

        impl Shared for $name {
            const CUDA: &'static str = stringify!($name);
        }

        impl $name {
            fn declare() -> String {
                let variants = [$(format!(concat!(stringify!($variant), " = {}"), $name::$variant as i32)),*];
                format!(concat!("enum class ", stringify!($name), " : int {{ {} }};\n"), variants.join(", "))
            }
        }
    };
}

pub(super) use {shared_constants, shared_enum, shared_structs};

#[cfg(test)]
mod tests {
    use super::*;

    shared_structs! {
        struct Inner { small: u32, large: f64, }
        struct Outer { inner: Inner, addresses: [u64; 3] as "float*", table: [[i32; 2]; 4], }
    }

    #[test]
    fn the_text_has_the_fields_in_their_order_and_where_they_lie() {
        let expected = "\
struct Inner {
    unsigned small;
    double large;
};
static_assert(__INTADDR__(&((Inner*)0)->small) == 0, \"Inner.small is elsewhere in Rust\");
static_assert(__INTADDR__(&((Inner*)0)->large) == 8, \"Inner.large is elsewhere in Rust\");
static_assert(sizeof(Inner) == 16, \"Inner has another size in Rust\");
struct Outer {
    Inner inner;
    float* addresses[3];
    int table[4][2];
};
static_assert(__INTADDR__(&((Outer*)0)->inner) == 0, \"Outer.inner is elsewhere in Rust\");
static_assert(__INTADDR__(&((Outer*)0)->addresses) == 16, \"Outer.addresses is elsewhere in Rust\");
static_assert(__INTADDR__(&((Outer*)0)->table) == 40, \"Outer.table is elsewhere in Rust\");
static_assert(sizeof(Outer) == 72, \"Outer has another size in Rust\");
";
        assert_eq!(structs(), expected);
    }
}
