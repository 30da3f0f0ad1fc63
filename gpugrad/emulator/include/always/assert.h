// assert in kernels, also where they include <assert.h> or <cassert> themselves: the C library's would
// end the process. No include guard, as there: NDEBUG counts anew each time.
#undef assert
#ifdef NDEBUG
#define assert(x) ((void)0)
#else
#define assert(x) \
    ((x) ? (void)0 : gpugrad_emulator::failed("assertion failed: " #x, __FILE__, __LINE__))
#endif
