// Asynchronous copies as CUDA's own header has them, but for __pipeline_arrive_on.
#pragma once

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros = 0,
                                    GPUGRAD_HERE) {
    if (size != 4 && size != 8 && size != 16)
        gpugrad_emulator::failed("__pipeline_memcpy_async: the size is none of 4, 8, 16", file, line);
    gpugrad_emulator::copy_async(to, from, static_cast<int>(size), static_cast<int>(size - zeros),
                                 file, line);
}
inline void __pipeline_commit() { gpugrad_emulator::copy_commit(); }
inline void __pipeline_wait_prior(size_t groups) {
    gpugrad_emulator::copy_wait(static_cast<int>(groups));
}
