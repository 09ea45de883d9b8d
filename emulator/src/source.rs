//! From a kernel's CUDA source to C++: what the preprocessor cannot do.

/// The instructions as calls of functions, dynamic shared memory as a pointer, and the entry points at the end.
pub(crate) fn to_cpp(source: &str) -> Result<String, String> {
    let kernel = kernel_name(source).ok_or("there is no kernel: `extern \"C\" __global__ void name(`")?;
    let cpp = with_offsets(&with_dynamic_shared_memory(&with_calls(source)?)?)?;
    Ok(format!("{}\n#line 1 \"kernel.cu\"\n{cpp}\nEMULATE({kernel})\n", include_str!("kernel.h")))
}

/// The name after `__global__ void` and what may stand before the name.
fn kernel_name(source: &str) -> Option<&str> {
    let (_, after) = source.split_once("extern \"C\" __global__ void")?;
    let mut after = after.trim_start();
    if after.starts_with("__launch_bounds__") {
        after = after.split_once(')')?.1.trim_start();
    }
    after.split_once('(').map(|(name, _)| name.trim())
}

/// `extern __shared__ ... name[];` becomes a pointer to the block's dynamic shared memory.
fn with_dynamic_shared_memory(source: &str) -> Result<String, String> {
    let mut parts = source.split("extern __shared__");
    let mut cpp = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (declaration, rest) = part.split_once("[];").ok_or("dynamic shared memory that is no array")?;
        let name = declaration.rsplit(' ').next().unwrap_or_default();
        cpp.extend(["unsigned char* ", name, " = this_thread->block->dynamic_shared;", rest]);
    }
    Ok(cpp)
}

/// Where a field lies: NVRTC's `__INTADDR__(&((Type*)0)->field)` becomes `offsetof(Type, field)`.
fn with_offsets(source: &str) -> Result<String, String> {
    let mut parts = source.split("__INTADDR__(&((");
    let mut cpp = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (of, rest) = part.split_once("*)0)->").ok_or("an offset of another form than that of a field")?;
        cpp.extend(["offsetof(", of, ", ", rest]);
    }
    Ok(cpp)
}

/// Every `asm` statement becomes `ptx::instruction(outputs, inputs)`.
fn with_calls(source: &str) -> Result<String, String> {
    let mut parts = source.split("asm");
    let mut cpp = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let inside = part.trim_start().trim_start_matches("volatile").trim_start();
        let is_word = cpp.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let Some(inside) = inside.strip_prefix('(').filter(|_| !is_word) else {
            cpp += "asm";
            cpp += part;
            continue;
        };
        let end = closing(inside).ok_or("an asm statement without its end")?;
        cpp += &call(&inside[..end])?;
        cpp += &inside[end + 1..];
    }
    Ok(cpp)
}

/// The index of the parenthesis that closes what is open at the start.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quoted) = (1, false);
    for (index, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(index);
        }
    }
    None
}

/// `"name.of.instruction ...;" : "=r"(out) : "r"(in)` as a call.
fn call(statement: &str) -> Result<String, String> {
    let mut pieces = statement.split('"');
    let template = pieces.nth(1).ok_or_else(|| format!("an asm statement without text: {statement}"))?;
    let instruction = template.split([' ', ';']).next().unwrap_or_default();
    let name: String = instruction.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    let mut operands = Vec::new();
    let mut rest = &statement[statement.find(template).unwrap_or(0) + template.len() + 1..];
    while let Some((_, after)) = rest.split_once("\"(").or_else(|| rest.split_once("\" (")) {
        let end = closing(after).ok_or_else(|| format!("an operand without its end: {statement}"))?;
        operands.push(after[..end].to_owned());
        rest = &after[end + 1..];
    }
    Ok(format!("ptx::{name}({})", operands.join(", ")))
}
