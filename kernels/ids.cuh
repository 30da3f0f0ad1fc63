// Ids as they come: int32 or, if `wide`, int64.
#pragma once

#include "common.cuh"

__device__ __forceinline__ int64_t id_at(const void* ids, bool wide, int64_t i) {
    return wide ? static_cast<const int64_t*>(ids)[i] : static_cast<const int32_t*>(ids)[i];
}
