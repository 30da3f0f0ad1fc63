// CUDA's own cuda_bf16.h with the code it has for hosts, not the assembly it has for GPUs.
#pragma once
#pragma push_macro("__CUDA_ARCH__")
#undef __CUDA_ARCH__
#include_next <cuda_bf16.h>
#pragma pop_macro("__CUDA_ARCH__")

#include "narrow.h"
GPUGRAD_NARROW(__nv_bfloat16, bfloat16, __double2bfloat16)
