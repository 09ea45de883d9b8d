// Numbers: the four activation types, their conversions, and vectors of VEC of them.
//
// Compiled with -DELEMENT (f16, bf16, f32 or f64), -DVEC (elements of one load), -DCOLUMNS (1: channels-last). NVRTC comes
// without cuda_fp16.h, so the two conversions that half types need are written here.

struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };
typedef float f32;
typedef double f64;

// What sums and differences are taken in, and what parameters are stored in.
template <class T> struct Number { typedef f32 Math; };
template <> struct Number<f64> { typedef f64 Math; };
typedef ELEMENT Element;
typedef Number<ELEMENT>::Math Math;
typedef Math Param;

__device__ inline f32 widen(f32 x) { return x; }
__device__ inline f64 widen(f64 x) { return x; }
__device__ inline f32 widen(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline f32 widen(f16 x) {
    f32 wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}

__device__ inline void narrow(f32 x, f32& out) { out = x; }
__device__ inline void narrow(f64 x, f64& out) { out = x; }
__device__ inline void narrow(f32 x, f16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }
__device__ inline void narrow(f32 x, bf16& out) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
    unsigned bits = __float_as_uint(x);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out.bits = is_nan ? 0x7fff : (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

template <int BYTES> struct Word;
template <> struct Word<2> { typedef unsigned short Type; };
template <> struct Word<4> { typedef unsigned Type; };
template <> struct Word<8> { typedef uint2 Type; };
template <> struct Word<16> { typedef uint4 Type; };
typedef Word<VEC * sizeof(Element)>::Type Raw;

// VEC elements, moved as one word.
union Vector {
    Raw raw;
    Element element[VEC];
    __device__ Vector() {}
};

// Memory that nothing writes while the kernel runs.
__device__ inline Raw load_constant(const void* base, long long index) { return __ldg((const Raw*)base + index); }
// Memory that this kernel may write: dx over dy.
__device__ inline Raw load(const void* base, long long index) { return *((const Raw*)base + index); }
// Results, which nobody here reads again: they should not push x out of the cache.
__device__ inline void store(void* base, long long index, Raw raw) { __stcs((Raw*)base + index, raw); }
