// What CUDA's language has and C++ does not, for a kernel that runs on a processor. It stands before the kernel's source.
//
// Each thread of a block is a coroutine, and the threads of a block take turns on one thread of the processor. So a barrier is a turn that
// is given away until the others have come, and `__shared__` is what one thread of the processor has for itself.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <utility>

struct Dim { unsigned x, y, z; };

// As in launch.rs.
struct Thread;
enum Wait : uint32_t { TURN, WARP, BLOCK };
struct Block {
    Dim index, dim, grid;
    unsigned char* dynamic_shared;
    void (*wait)(Thread*, uint32_t);
};
struct Thread {
    Dim index;
    const Block* block;
    void* yielder;
    uint64_t* lanes; // two sets of one number for each thread of the warp
    uint32_t shuffles;
};

static thread_local Thread* this_thread;
#define threadIdx (this_thread->index)
#define blockIdx (this_thread->block->index)
#define blockDim (this_thread->block->dim)
#define gridDim (this_thread->block->grid)

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __align__ alignas

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) double2 { double x, y; };
static inline double2 make_double2(double x, double y) { return {x, y}; }

template <class To, class From> static inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}
static inline long long __double_as_longlong(double x) { return bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return bits<double>(x); }
static inline unsigned __float_as_uint(float x) { return bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return bits<float>(x); }

template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
using std::fma, std::isfinite;
// Newer C libraries have one of this name.
static inline double reciprocal_sqrt(double x) { return 1 / sqrt(x); }
#define rsqrt reciprocal_sqrt
// The compiler may not fuse it with an addition.
static inline double __dmul_rn(double a, double b) {
    volatile double product = a * b;
    return product;
}

template <class T> static inline T __ldg(const T* from) { return *from; }
template <class T> static inline T __ldcg(const T* from) { return *from; }
template <class T> static inline void __stcs(T* to, T value) { *to = value; }
static inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline unsigned atomicCAS(unsigned* at, unsigned expected, unsigned value) {
    __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}

static inline void wait_for(Wait wait) { this_thread->block->wait(this_thread, wait); }
static inline void __syncthreads() { wait_for(BLOCK); }
template <class T> static inline T __shfl_xor_sync(unsigned, T value, int mask) {
    uint64_t* lanes = this_thread->lanes + 32 * (this_thread->shuffles++ % 2);
    unsigned lane = this_thread->index.x % 32;
    lanes[lane] = bits<uint64_t>(value);
    wait_for(WARP);
    return bits<T>(lanes[lane ^ mask]);
}

// The instructions that the kernels name themselves: a function for each, with the operands in the order of the `asm` statement.
namespace ptx {
typedef unsigned long long u64;
typedef unsigned short u16;

static inline void mov_b16(u16& to, u16 from) { to = from; }
static inline void mov_b32(float& to, float from) { to = from; }
static inline void mov_b64(double& to, double from) { to = from; }
static inline void cvt_f32_f16(float& wide, u16 half) { wide = (float)bits<_Float16>(half); }
static inline void cvt_rn_f16_f32(u16& half, float x) { half = bits<u16>((_Float16)x); }
static inline void cvt_rn_bf16_f32(u16& half, float x) {
    unsigned bits = __float_as_uint(x);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    half = is_nan ? 0x7fff : (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
static inline void cvt_rn_f16x2_f32(unsigned& pair, float high, float low) {
    u16 halves[2];
    cvt_rn_f16_f32(halves[0], low);
    cvt_rn_f16_f32(halves[1], high);
    pair = (unsigned)halves[1] << 16 | halves[0];
}
static inline void cvt_rn_bf16x2_f32(unsigned& pair, float high, float low) {
    u16 halves[2];
    cvt_rn_bf16_f32(halves[0], low);
    cvt_rn_bf16_f32(halves[1], high);
    pair = (unsigned)halves[1] << 16 | halves[0];
}
// The upper half of the bits, as the device gives it.
static inline void rcp_approx_ftz_f64(double& guess, double x) {
    guess = __longlong_as_double(__double_as_longlong(1 / x) & ~0xffffffffll);
}
static inline void createpolicy_fractional_L2__evict_last_b64(u64& policy) { policy = 1; }
static inline void createpolicy_fractional_L2__evict_first_b64(u64& policy) { policy = 2; }

static inline void load(unsigned& x, unsigned& y, unsigned& z, unsigned& w, const void* at) {
    const uint4 word = *(const uint4*)at;
    x = word.x, y = word.y, z = word.z, w = word.w;
}
static inline void ld_global_nc_L1__no_allocate_L2__cache_hint_v4_u32(
    unsigned& x, unsigned& y, unsigned& z, unsigned& w, const void* at, u64
) {
    load(x, y, z, w, at);
}
static inline void ld_global_L1__no_allocate_L2__cache_hint_v4_u32(
    unsigned& x, unsigned& y, unsigned& z, unsigned& w, const void* at, u64
) {
    load(x, y, z, w, at);
}
static inline void st_global_L1__no_allocate_L2__cache_hint_v4_u32(
    void* at, unsigned x, unsigned y, unsigned z, unsigned w, u64
) {
    *(uint4*)at = {x, y, z, w};
}

// Of memory that another device or block writes meanwhile. Only 8 bytes come together, and whoever asks gives the others a turn.
static inline void relaxed(unsigned& x, unsigned& y, unsigned& z, unsigned& w, const void* at) {
    wait_for(TURN);
    u64 low = __atomic_load_n((const u64*)at, __ATOMIC_ACQUIRE), high = __atomic_load_n((const u64*)at + 1, __ATOMIC_ACQUIRE);
    x = (unsigned)low, y = (unsigned)(low >> 32), z = (unsigned)high, w = (unsigned)(high >> 32);
}
static inline void ld_relaxed_sys_global_v4_u32(unsigned& x, unsigned& y, unsigned& z, unsigned& w, const void* at) {
    relaxed(x, y, z, w, at);
}
static inline void ld_relaxed_gpu_global_v4_u32(unsigned& x, unsigned& y, unsigned& z, unsigned& w, const void* at) {
    relaxed(x, y, z, w, at);
}
static inline void st_relaxed_sys_global_v4_u32(void* at, unsigned low, unsigned number, unsigned high) {
    __atomic_store_n((u64*)at, (u64)number << 32 | low, __ATOMIC_RELEASE);
    __atomic_store_n((u64*)at + 1, (u64)number << 32 | high, __ATOMIC_RELEASE);
}
static inline void atom_acq_rel_gpu_global_inc_u32(unsigned& before, unsigned* at, unsigned most) {
    before = __atomic_load_n(at, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(at, &before, before >= most ? 0 : before + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
}
static inline void atom_relaxed_gpu_global_inc_u32(unsigned& before, unsigned* at, unsigned most) {
    atom_acq_rel_gpu_global_inc_u32(before, at, most);
}
// The global timer, in nanoseconds.
static inline void mov_u64(u64& now) {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    now = (u64)time.tv_sec * 1000000000 + time.tv_nsec;
}
// A kernel starts when the one before it has ended.
static inline void griddepcontrol_launch_dependents() {}
static inline void griddepcontrol_wait() {}
} // namespace ptx

// How the kernel is called: by pointers to its parameters, whose sizes the caller asks for first.
template <class... P> static size_t sizes_of(void (*)(P...), size_t* sizes) {
    const size_t all[] = {sizeof(P)...};
    memcpy(sizes, all, sizeof(all));
    return sizeof...(P);
}
template <class... P, size_t... I> static void call_with(void (*kernel)(P...), void** params, std::index_sequence<I...>) {
    kernel(*(P*)params[I]...);
}
template <class... P> static void call(void (*kernel)(P...), void** params) {
    call_with(kernel, params, std::index_sequence_for<P...>());
}
#define EMULATE(KERNEL)                                                                                  \
    extern "C" size_t emulator_sizes(size_t* sizes) { return sizes_of(KERNEL, sizes); }                  \
    extern "C" void emulator_call(void** params) { call(KERNEL, params); }                               \
    extern "C" Thread** emulator_current() { return &this_thread; }                                          \
    extern "C" const char* emulator_name() { return #KERNEL; }
