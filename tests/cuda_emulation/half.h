#pragma once

// The 16-bit types, with CUDA's names and rounding (to nearest even).

#include <bit>
#include <cstdint>

#include "memory_functions.h"

struct __half {
  uint16_t bits;
  __half() = default;
  EMU_INLINE explicit __half(float value);
  EMU_INLINE explicit operator float() const;
};

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  EMU_INLINE explicit __nv_bfloat16(float value);
  EMU_INLINE explicit operator float() const;
};

EMU_INLINE float __half2float(__half half) {
  const uint32_t sign = uint32_t(half.bits & 0x8000) << 16;
  const uint32_t magnitude = uint32_t(half.bits & 0x7fff) << 13;
  if (magnitude >= 0x0f800000) { // infinity or NaN
    return std::bit_cast<float>(sign | 0x70000000 | magnitude);
  }
  // Scaling by 2^112 moves the exponent's bias and normalises subnormals.
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

EMU_INLINE __half __float2half_rn(float value) {
  const uint32_t word = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (word >> 16) & 0x8000;
  const uint32_t magnitude = word & 0x7fffffff;
  uint32_t rounded;
  if (magnitude > 0x7f800000) {
    rounded = 0x7fff; // CUDA's NaN
  } else if (magnitude >= 0x477ff000) {
    rounded = 0x7c00; // rounds to infinity
  } else if (magnitude < 0x38800000) {
    // Subnormal: adding 1/2 leaves multiples of 2^-24 in the last bits.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    rounded = std::bit_cast<uint32_t>(sum) - 0x3f000000;
  } else {
    const uint32_t odd = (magnitude >> 13) & 1;
    rounded = (magnitude - 0x38000000 + 0xfff + odd) >> 13;
  }
  __half half;
  half.bits = static_cast<uint16_t>(sign | rounded);
  return half;
}

EMU_INLINE float __bfloat162float(__nv_bfloat16 value) {
  return std::bit_cast<float>(uint32_t(value.bits) << 16);
}

EMU_INLINE __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t word = std::bit_cast<uint32_t>(value);
  __nv_bfloat16 result;
  if ((word & 0x7fffffff) > 0x7f800000) {
    result.bits = 0x7fff; // CUDA's NaN
  } else {
    result.bits =
        static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
  }
  return result;
}

EMU_INLINE __half::__half(float value)
    : bits(__float2half_rn(value).bits) {}
EMU_INLINE __half::operator float() const {
  return __half2float(*this);
}
EMU_INLINE __nv_bfloat16::__nv_bfloat16(float value)
    : bits(__float2bfloat16_rn(value).bits) {}
EMU_INLINE __nv_bfloat16::operator float() const {
  return __bfloat162float(*this);
}
