// Numbers: the four activation types, their conversions, and vectors of VEC of them.
//
// Compiled with -DELEMENT (f16, bf16, f32 or f64), -DVEC (elements of a vector), -DCOLUMNS (see walk.cuh), -DPEERS (whether the ranks
// meet inside the kernel), -DTHREADS (the most threads of a block), -DBLOCKS (blocks of so many threads on a multiprocessor), -DUNROLL
// (loads of a tensor that a thread has in flight), -DMOST_CHANNELS_PER_BLOCK and -DPARTS_OF_SUM (see message.cuh). The declarations of
// src/raw/params.rs follow this file. NVRTC comes without cuda_fp16.h, so conversions of half types are written here.

struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };
typedef float f32;
typedef double f64;

// Math: the type of differences, products and parameters. Sum: the type in which up to 64 elements are added, wide enough that rounding
// does not show in their mean.
template <class T> struct Number { typedef f32 Math, Sum; };
template <> struct Number<f32> { typedef f32 Math; typedef f64 Sum; };
template <> struct Number<f64> { typedef f64 Math, Sum; };
typedef ELEMENT Element;
typedef Number<ELEMENT>::Math Math;
typedef Number<ELEMENT>::Sum Sum;
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

// 1 / x of a normal x, to one or two roundings. The division of the language also handles all other x, which takes a quarter of a
// microsecond, and all blocks wait for it.
__device__ inline f64 reciprocal(f64 x) {
    f64 guess;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(guess) : "d"(x)); // 20 bits; each step doubles them
    guess = fma(fma(-x, guess, 1.0), guess, guess);
    return fma(fma(-x, guess, 1.0), guess, guess);
}
// a / x from 1 / x to one or two roundings: the quotient is corrected once by its remainder.
__device__ inline f64 divide(f64 a, f64 x, f64 reciprocal) {
    f64 quotient = a * reciprocal;
    return fma(fma(-quotient, x, a), reciprocal, quotient);
}

template <int BYTES> struct Word;
template <> struct Word<2> { typedef unsigned short Type; };
template <> struct Word<4> { typedef unsigned Type; };
template <> struct Word<8> { typedef uint2 Type; };
template <> struct Word<16> { typedef uint4 Type; };
typedef Word<VEC * sizeof(Element)>::Type Raw;

// VEC elements, loaded and stored as one word.
union Vector {
    Raw raw;
    Element element[VEC];
    unsigned pair[(VEC + 1) / 2];
    __device__ Vector() {}
};

// Two elements in one instruction, where the device has it.
template <class T> __device__ inline void narrow_pair(Math low, Math high, T& first, T& second, unsigned&) {
    narrow(low, first);
    narrow(high, second);
}
#if __CUDA_ARCH__ >= 800
__device__ inline void narrow_pair(f32 low, f32 high, f16&, f16&, unsigned& pair) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
}
__device__ inline void narrow_pair(f32 low, f32 high, bf16&, bf16&, unsigned& pair) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
}
#endif
__device__ inline void narrow(const Math (&wide)[VEC], Vector& out) {
#if VEC == 1
    narrow(wide[0], out.element[0]);
#else
#pragma unroll
    for (int j = 0; j < VEC; j += 2) {
        narrow_pair(wide[j], wide[j + 1], out.element[j], out.element[j + 1], out.pair[j / 2]);
    }
#endif
}

// Cache hints: evict_last for what the next kernel reads again, evict_first for what is not needed again.
typedef unsigned long long Policy;
__device__ inline Policy evict_last() {
    Policy policy = 0;
#if __CUDA_ARCH__ >= 800
    asm("createpolicy.fractional.L2::evict_last.b64 %0;" : "=l"(policy));
#endif
    return policy;
}
__device__ inline Policy evict_first() {
    Policy policy = 0;
#if __CUDA_ARCH__ >= 800
    asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
#endif
    return policy;
}

// For memory that nothing writes while the kernel runs.
template <class Word> __device__ inline Word load_constant(const Word* from, Policy) { return __ldg(from); }
// For memory that this kernel may write: dx may be stored in the place of dy.
template <class Word> __device__ inline Word load(const Word* from, Policy) { return *from; }
// For results. This kernel does not read them again, so they should not displace x in the cache.
template <class Word> __device__ inline void store(Word* to, Word word, Policy) { __stcs(to, word); }
#if __CUDA_ARCH__ >= 800
template <> __device__ inline uint4 load_constant(const uint4* from, Policy policy) {
    uint4 word;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
                 : "l"(from), "l"(policy));
    return word;
}
template <> __device__ inline uint4 load(const uint4* from, Policy policy) {
    uint4 word;
    asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
                 : "l"(from), "l"(policy)
                 : "memory");
    return word;
}
template <> __device__ inline void store(uint4* to, uint4 word, Policy policy) {
    asm volatile("st.global.L1::no_allocate.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;"
                 :
                 : "l"(to), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w), "l"(policy)
                 : "memory");
}
#endif
__device__ inline Math element_at(const void* base, long long index) { return widen(((const Element*)base)[index]); }

// The value, which the compiler takes for a new one. So it converts what was read where that is used, and not where it was read: then
// the loads in between would wait for it.
__device__ inline f32 late(f32 value) {
    f32 same;
    asm volatile("mov.b32 %0, %1;" : "=f"(same) : "f"(value));
    return same;
}
__device__ inline f64 late(f64 value) {
    f64 same;
    asm volatile("mov.b64 %0, %1;" : "=d"(same) : "d"(value));
    return same;
}
template <class Half> __device__ inline Half late(Half value) {
    Half same;
    asm volatile("mov.b16 %0, %1;" : "=h"(same.bits) : "h"(value.bits));
    return same;
}
