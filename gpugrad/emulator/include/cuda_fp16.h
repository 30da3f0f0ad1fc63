// CUDA's own cuda_fp16.h with the code it has for hosts, not the assembly it has for GPUs.
#pragma once
#pragma push_macro("__CUDA_ARCH__")
#undef __CUDA_ARCH__
#include_next <cuda_fp16.h>
#pragma pop_macro("__CUDA_ARCH__")

#include "narrow.h"
GPUGRAD_NARROW(__half, half, __double2half)
