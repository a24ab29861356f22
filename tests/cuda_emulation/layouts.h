#pragma once

#include <vector>

// The 16x8 product of a [16, 16] and b [16, 8], rounded to 16 bits, by one
// warp: operands through ldmatrix or straight into the lanes that PTX names.
std::vector<float> product_float16(
    const std::vector<float>& a,
    const std::vector<float>& b,
    bool ldmatrix);
std::vector<float> product_bfloat16(
    const std::vector<float>& a,
    const std::vector<float>& b,
    bool ldmatrix);
