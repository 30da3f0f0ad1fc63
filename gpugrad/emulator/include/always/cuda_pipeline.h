// What of CUDA's header the emulator has.
#pragma once
#include "cuda_pipeline_primitives.h"
