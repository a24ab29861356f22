#pragma once

// Transposes a tile of 32x32 floats through shared memory whose rows are
// `row_floats` apart, and stores element i at `stride` i.
int transpose_tile(int row_floats, int stride);
