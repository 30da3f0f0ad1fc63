// What the compiler calls in the checked build: loads and stores (`__tsan_*`, an interface of
// ThreadSanitizer) and undefined operations (`__ubsan_*`, of UndefinedBehaviorSanitizer).
#include <cstddef>
#include <cstdint>

#include "internal.hpp"

using namespace gpugrad_emulator;
using checks::access;
using checks::volatile_access;

#define PC                                                                           \
    static_cast<uint32_t>(reinterpret_cast<uintptr_t>(__builtin_return_address(0)) - \
                          state.code_base)
#define HOOK(name, function, size, how)                 \
    extern "C" EXPORT void __tsan_##name(void* p) {     \
        function(static_cast<char*>(p), size, how, PC); \
    }
#define HOOKS(size)                                    \
    HOOK(read##size, access, size, READ)               \
    HOOK(write##size, access, size, WRITE)             \
    HOOK(unaligned_read##size, access, size, READ)     \
    HOOK(unaligned_write##size, access, size, WRITE)   \
    HOOK(volatile_read##size, volatile_access, size, READ) \
    HOOK(volatile_write##size, volatile_access, size, WRITE)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
extern "C" {
EXPORT void __tsan_read_range(void* p, size_t size) {
    if (size) access(static_cast<char*>(p), size, READ, PC);
}
EXPORT void __tsan_write_range(void* p, size_t size) {
    if (size) access(static_cast<char*>(p), size, WRITE, PC);
}
EXPORT void __tsan_init() {}
EXPORT void __tsan_func_entry(void*) {}
EXPORT void __tsan_func_exit() {}
EXPORT void __tsan_vptr_update(void**, void*) {}
EXPORT void __tsan_vptr_read(void**) {}

// The layouts of libubsan's data, as far as they are read here.
struct Source {
    const char* file;
    uint32_t line, column;
};
struct Type {
    uint16_t kind, info;
    char name[];
};
struct Mismatch {
    Source source;
    const Type* type;
    uint8_t log_alignment, check;
};
struct Index {
    Source source;
    const Type *array, *index;
};

[[noreturn]] static void undefined(Kind kind, const Source& source, const char* text) {
    fault(kind, state.current, {source.file, static_cast<int>(source.line), 0}, "%s", text);
}
#define UNDEFINED_OPERATION(name, kind, text)                                         \
    EXPORT void __ubsan_handle_##name##_abort(Source* source, uintptr_t, uintptr_t) { \
        undefined(kind, *source, text);                                               \
    }
UNDEFINED_OPERATION(add_overflow, OVERFLOWED, "a sum overflows its signed integer type")
UNDEFINED_OPERATION(sub_overflow, OVERFLOWED, "a difference overflows its signed integer type")
UNDEFINED_OPERATION(mul_overflow, OVERFLOWED, "a product overflows its signed integer type")
UNDEFINED_OPERATION(negate_overflow, OVERFLOWED, "a negation overflows its signed integer type")
UNDEFINED_OPERATION(divrem_overflow, DIVISION, "integer division by zero, or of the lowest by -1")
UNDEFINED_OPERATION(
    shift_out_of_bounds, OVERFLOWED,
    "a shift by a negative number, by the width or more, or out of a signed integer")
UNDEFINED_OPERATION(vla_bound_not_positive, UNDEFINED, "an array of no or negative length")
UNDEFINED_OPERATION(load_invalid_value, UNDEFINED,
                    "a bool or enum holds none of its values: uninitialised?")
UNDEFINED_OPERATION(nonnull_arg, UNDEFINED, "a null pointer where none is allowed")
UNDEFINED_OPERATION(nonnull_return_v1, UNDEFINED, "a null pointer returned where none is allowed")
UNDEFINED_OPERATION(invalid_builtin, UNDEFINED, "a bit count of zero where that is undefined")
UNDEFINED_OPERATION(float_cast_overflow, OVERFLOWED,
                    "a float does not fit the integer it becomes (where the GPU's saturation is "
                    "meant: __float2int_rz and the like)")
EXPORT void __ubsan_handle_pointer_overflow_abort(Source* source, uintptr_t base, uintptr_t) {
    if (!base)
        undefined(MEMORY_FAULT, *source, "arithmetic on a null pointer (test the pointer first)");
    undefined(OUT_OF_BOUNDS, *source, "pointer arithmetic wraps around");
}
EXPORT void __ubsan_handle_builtin_unreachable(Source* source) {
    undefined(UNDEFINED, *source, "reached code that cannot be reached");
}
EXPORT void __ubsan_handle_missing_return(Source* source) {
    undefined(UNDEFINED, *source, "a function ends without returning its value");
}
EXPORT void __ubsan_handle_out_of_bounds_abort(Index* data, uintptr_t index) {
    fault(OUT_OF_BOUNDS, state.current, {data->source.file, static_cast<int>(data->source.line), 0},
          "index %lld is outside of %s", static_cast<long long>(static_cast<int>(index)),
          data->array->name);
}
EXPORT void __ubsan_handle_type_mismatch_v1_abort(Mismatch* data, uintptr_t pointer) {
    const Spot spot{data->source.file, static_cast<int>(data->source.line), 0};
    const size_t alignment = size_t(1) << data->log_alignment;
    if (!pointer)
        fault(MEMORY_FAULT, state.current, spot, "access to %s through a null pointer",
              data->type->name);
    if (pointer & (alignment - 1))
        fault(MISALIGNED, state.current, spot,
              "access to %s at an address that is not a multiple of %zu", data->type->name,
              alignment);
    fault(OUT_OF_BOUNDS, state.current, spot, "not enough room for %s at this address",
          data->type->name);
}
}
