#pragma once

#include <cmath>
#include <cstdint>

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
#include <immintrin.h>
#endif

#include "common/index.h"
#include "common/philox.h"

// Dropout for a run of consecutive weights. Included by units that are compiled
// once per instruction set, hence the inline namespace.
namespace subquad {
inline namespace CPU_CAPABILITY {

// Counters that are worked on side by side.
constexpr int64_t kPhiloxCounters = 16;

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)

// 32-bit words in 64-bit lanes; the upper halves may hold anything.
#if defined(CPU_CAPABILITY_AVX512)
struct PhiloxLanes {
  using Vector = __m512i;
  static constexpr int64_t kCount = 8;
  // The unpacking of words below interleaves lanes; this order undoes it.
  static Vector counters() {
    return _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  }
  static Vector all(uint64_t x) {
    return _mm512_set1_epi64(static_cast<int64_t>(x));
  }
  static Vector add(Vector a, Vector b) {
    return _mm512_add_epi64(a, b);
  }
  static Vector multiply(Vector a, Vector b) {
    return _mm512_mul_epu32(a, b);
  }
  static Vector upper(Vector a) {
    return _mm512_srli_epi64(a, 32);
  }
  static Vector exclusive_or(Vector a, Vector b) {
    return _mm512_xor_si512(a, b);
  }
  static Vector join(Vector low, Vector high) {
    return _mm512_mask_blend_epi32(0xAAAA, low, _mm512_slli_epi64(high, 32));
  }
  static void store(uint32_t* target, Vector words01, Vector words23) {
    _mm512_storeu_si512(target, _mm512_unpacklo_epi64(words01, words23));
    _mm512_storeu_si512(target + 16, _mm512_unpackhi_epi64(words01, words23));
  }
};
#else
struct PhiloxLanes {
  using Vector = __m256i;
  static constexpr int64_t kCount = 4;
  // The unpacking of words below interleaves lanes; this order undoes it.
  static Vector counters() {
    return _mm256_setr_epi64x(0, 2, 1, 3);
  }
  static Vector all(uint64_t x) {
    return _mm256_set1_epi64x(static_cast<int64_t>(x));
  }
  static Vector add(Vector a, Vector b) {
    return _mm256_add_epi64(a, b);
  }
  static Vector multiply(Vector a, Vector b) {
    return _mm256_mul_epu32(a, b);
  }
  static Vector upper(Vector a) {
    return _mm256_srli_epi64(a, 32);
  }
  static Vector exclusive_or(Vector a, Vector b) {
    return _mm256_xor_si256(a, b);
  }
  static Vector join(Vector low, Vector high) {
    return _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xAA);
  }
  static void store(uint32_t* target, Vector words01, Vector words23) {
    auto* vectors = reinterpret_cast<__m256i*>(target);
    _mm256_storeu_si256(vectors, _mm256_unpacklo_epi64(words01, words23));
    _mm256_storeu_si256(vectors + 1, _mm256_unpackhi_epi64(words01, words23));
  }
};
#endif

// The words of `kPhiloxCounters` counters from `first` on, in their order.
inline void
philox_words(const Dropout& dropout, uint64_t first, uint32_t* words) {
  using Lanes = PhiloxLanes;
  using Vector = Lanes::Vector;
  const Vector factor0 = Lanes::all(0xD2511F53);
  const Vector factor1 = Lanes::all(0xCD9E8D57);
  for (int64_t k = 0; k < kPhiloxCounters; k += Lanes::kCount) {
    const Vector counter = Lanes::add(
        Lanes::all(first + static_cast<uint64_t>(k)), Lanes::counters());
    Vector c0 = counter;
    Vector c1 = Lanes::upper(counter);
    Vector c2 = Lanes::all(dropout.offset);
    Vector c3 = Lanes::upper(c2);
    auto key0 = static_cast<uint32_t>(dropout.seed);
    auto key1 = static_cast<uint32_t>(dropout.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const Vector product0 = Lanes::multiply(c0, factor0);
      const Vector product1 = Lanes::multiply(c2, factor1);
      c0 = Lanes::exclusive_or(
          Lanes::upper(product1), Lanes::exclusive_or(c1, Lanes::all(key0)));
      c1 = product1;
      c2 = Lanes::exclusive_or(
          Lanes::upper(product0), Lanes::exclusive_or(c3, Lanes::all(key1)));
      c3 = product0;
      key0 += 0x9E3779B9;
      key1 += 0xBB67AE85;
    }
    Lanes::store(words + 4 * k, Lanes::join(c0, c1), Lanes::join(c2, c3));
  }
}

#else

inline void
philox_words(const Dropout& dropout, uint64_t first, uint32_t* words) {
  for (int64_t k = 0; k < kPhiloxCounters; ++k) {
    const PhiloxWords some =
        philox(dropout.seed, dropout.offset, first + static_cast<uint64_t>(k));
    for (int64_t w = 0; w < 4; ++w) {
      words[4 * k + w] = some.word[w];
    }
  }
}

#endif

// weights[i] = keep(first + i) ? factor * weights[i] : 0, as Dropout decides.
template <typename acc_t>
inline void drop_weights(
    const Dropout& dropout,
    uint64_t first,
    int64_t count,
    acc_t factor,
    acc_t* weights) {
  // A word above this is kept; exact, as scaling by 2^32 is.
  const auto bound = static_cast<uint32_t>(
      static_cast<uint64_t>(std::ceil(dropout.probability * 4294967296.0)) - 1);
  constexpr int64_t kWords = 4 * kPhiloxCounters;
  for (int64_t i = -static_cast<int64_t>(first % 4); i < count; i += kWords) {
    uint32_t words[kWords];
    philox_words(dropout, (first + static_cast<uint64_t>(i)) / 4, words);
    const int64_t begin = max_index(i, 0);
    const int64_t end = min_index(i + kWords, count);
    for (int64_t j = begin; j < end; ++j) {
      weights[j] = words[j - i] > bound ? weights[j] * factor : acc_t(0);
    }
  }
}

} // namespace CPU_CAPABILITY
} // namespace subquad
