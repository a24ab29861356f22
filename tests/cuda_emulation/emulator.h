#pragma once

// What a kernel sees of CUDA when g++ compiles it: cuda/prim.cuh includes this.
// A block runs as one fibre per thread, blocks one after the other; the checks
// see every load and store because kernel units are compiled with
// -fsanitize=thread and this emulator, not libtsan, receives the calls.

#include "buffers.h"
#include "collectives.h"
#include "half.h"
#include "launcher.h"
#include "memory_functions.h"
#include "primitives.h"
#include "report.h"
#include "statistics.h"
#include "vector_types.h"
