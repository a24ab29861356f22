#include "ops/random_features/cpu_kernel.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/micro_kernel.h"
#include "cpu/pack.h"
#include "cpu/row_tiles.h"

namespace subquad {

namespace {

// Tokens whose projections are made, and used while they are in the cache. A
// multiple of the rows of a register tile.
constexpr int64_t kTile = 48;

// The gradient of the projection is summed over this many groups of tiles per
// head at most, which bounds the memory of the partial sums; the groups follow
// from sizes alone.
constexpr int64_t kGroups = 32;
constexpr int64_t kGroupTiles = 8; // at least

// Multiply-adds that are not worth a second thread.
constexpr int64_t kSerialWork = 200000;

template <typename acc_t>
constexpr acc_t kNothing = -std::numeric_limits<acc_t>::infinity();

// The maximum of two numbers; NaN wins.
template <typename acc_t>
acc_t running_maximum(acc_t before, acc_t x) {
  return x > before || std::isnan(x) ? x : before;
}

// The projections of all heads in the layouts of register tiles.
template <typename scalar_t>
class PackedProjection {
 public:
  using acc_t = at::opmath_type<scalar_t>;
  static constexpr int64_t kLane = kLanes<acc_t>;

  PackedProjection(const RandomFeaturesParams& params, bool rows)
      : panel_size_(
            round_to_lanes<acc_t>(params.projections) * params.head_dim),
        row_size_(params.projections * round_to_lanes<acc_t>(params.head_dim)),
        panels_(params.projection_heads * panel_size_),
        rows_(rows ? params.projection_heads * row_size_ : 0) {
    const int64_t R = params.projections;
    const int64_t D = params.head_dim;
    at::parallel_for(
        0,
        params.projection_heads,
        max_index(kSerialWork / (R * D), 1),
        [&](int64_t begin, int64_t end) {
          for (int64_t h = begin; h < end; ++h) {
            const auto* source =
                static_cast<const scalar_t*>(params.projection) + h * R * D;
            for (int64_t r = 0; r < R; r += kLane) {
              pack_panel(
                  source + r * D,
                  D,
                  min_index(kLane, R - r),
                  D,
                  panels_.get() + h * panel_size_ + r * D);
            }
            if (rows) {
              pack_rows(
                  source,
                  D,
                  R,
                  D,
                  rows_.get() + h * row_size_,
                  round_to_lanes<acc_t>(D));
            }
          }
        });
  }

  // [R / lanes, D, lanes]
  const acc_t* panels(int64_t head) const {
    return panels_.get() + head * panel_size_;
  }

  // [R, D], vectors padded with zeros
  const acc_t* rows(int64_t head) const {
    return rows_.get() + head * row_size_;
  }

 private:
  int64_t panel_size_;
  int64_t row_size_;
  Scratch<acc_t> panels_;
  Scratch<acc_t> rows_;
};

// One worker's tile of tokens: x, p and n of the formulas.
template <typename scalar_t>
class Tile {
 public:
  using acc_t = at::opmath_type<scalar_t>;
  static constexpr int64_t kLane = kLanes<acc_t>;

  Tile(
      const RandomFeaturesParams& params,
      const PackedProjection<scalar_t>& projection)
      : params_(params),
        packed_(projection),
        head_dim_(round_to_lanes<acc_t>(params.head_dim)),
        projections_(round_to_lanes<acc_t>(params.projections)),
        input_(kTile * head_dim_),
        projected_(kTile * projections_) {}

  void enter(const RowTile& tile, int64_t head) {
    row_ = tile.row;
    batch_ = params_.packed ? 0 : tile.row;
    head_ = head;
    begin_ = tile.begin;
    count_ = tile.end - tile.begin;
    pack_rows(
        static_cast<const scalar_t*>(params_.input) +
            offset(params_.input_stride, 0),
        params_.input_stride.row,
        count_,
        params_.head_dim,
        input_.get(),
        head_dim_,
        static_cast<acc_t>(params_.scale));
  }

  void project() {
    multiply<acc_t>(
        count_,
        projections_ / kLane,
        params_.head_dim,
        input_.get(),
        head_dim_,
        1,
        packed_.panels(projection_head()),
        kLane,
        kLane * params_.head_dim,
        projected_.get(),
        projections_,
        false);
  }

  int64_t count() const {
    return count_;
  }

  int64_t head() const {
    return head_;
  }

  int64_t projection_head() const {
    return head_ / (params_.heads / params_.projection_heads);
  }

  // The place of token t in a tensor, and in a dense [B, H, L] one.
  int64_t offset(const Strides& stride, int64_t t) const {
    return batch_ * stride.batch + head_ * stride.head +
        (begin_ + t) * stride.row;
  }

  int64_t line(int64_t t) const {
    return (batch_ * params_.heads + head_) * params_.length + begin_ + t;
  }

  // Of the row and head, -inf if none is given.
  acc_t initial() const {
    return params_.initial_log_scale == nullptr
        ? kNothing<acc_t>
        : static_cast<const acc_t*>(
              params_.initial_log_scale)[row_ * params_.heads + head_];
  }

  // scale x, [D], zeros to the end of the last vector
  acc_t* input(int64_t t) const {
    return input_.get() + t * head_dim_;
  }

  // p, [R]; what follows in the last vector has no meaning
  acc_t* projected(int64_t t) const {
    return projected_.get() + t * projections_;
  }

  int64_t input_stride() const {
    return head_dim_;
  }

  int64_t projected_stride() const {
    return projections_;
  }

  // n
  acc_t norm(int64_t t) const {
    Vec<acc_t> sum(acc_t(0));
    for (int64_t d = 0; d < head_dim_; d += kLane) {
      const Vec<acc_t> x = Vec<acc_t>::loadu(input(t) + d);
      sum = at::vec::fmadd(x, x, sum);
    }
    return reduce_sum(sum) / 2;
  }

  // What m is a maximum of; NaN wins.
  acc_t top(int64_t t) const {
    if (params_.kind != RandomFeatures::kPositive) {
      return norm(t);
    }
    Vec<acc_t> most(kNothing<acc_t>);
    const acc_t* p = projected(t);
    const int64_t R = params_.projections;
    int64_t r = 0;
    for (; r + kLane <= R; r += kLane) {
      most = at::vec::maximum(most, Vec<acc_t>::loadu(p + r));
    }
    if (r < R) {
      most = at::vec::maximum(
          most,
          Vec<acc_t>::set(
              Vec<acc_t>(kNothing<acc_t>), Vec<acc_t>::loadu(p + r), R - r));
    }
    return reduce_max(most);
  }

 private:
  const RandomFeaturesParams& params_;
  const PackedProjection<scalar_t>& packed_;
  int64_t head_dim_;         // rounded to vectors
  int64_t projections_;      // rounded to vectors
  Scratch<acc_t> input_;     // [tile, D]
  Scratch<acc_t> projected_; // [tile, R]
  int64_t row_ = 0;
  int64_t batch_ = 0;
  int64_t head_ = 0;
  int64_t begin_ = 0; // first token on the tensor's axis
  int64_t count_ = 0;
};

int64_t tile_grain(const RandomFeaturesParams& params) {
  const int64_t work =
      min_index(params.length, kTile) * params.head_dim * params.projections;
  return max_index(kSerialWork / max_index(work, 1), 1);
}

// Calls visit(row * H + head, the line of its first token in [B, H, L], the
// number of its tokens).
template <typename Visit>
void for_each_row(
    const RandomFeaturesParams& params,
    const RowTiles& tiles,
    const Visit& visit) {
  at::parallel_for(
      0,
      params.rows * params.heads,
      max_index(kSerialWork / max_index(8 * params.length, 1), 1),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i / params.heads;
          const int64_t head = i % params.heads;
          const Span tokens = tiles.span(row);
          const int64_t batch = params.packed ? 0 : row;
          visit(
              i,
              (batch * params.heads + head) * params.length + tokens.start,
              tokens.length);
        }
      });
}

template <typename acc_t>
acc_t initial_of(const RandomFeaturesParams& params, int64_t row_head) {
  return params.initial_log_scale == nullptr
      ? kNothing<acc_t>
      : static_cast<const acc_t*>(params.initial_log_scale)[row_head];
}

template <typename scalar_t>
class Forward {
 public:
  using acc_t = at::opmath_type<scalar_t>;
  static constexpr int64_t kLane = kLanes<acc_t>;

  Forward(
      const RandomFeaturesParams& params,
      const PackedProjection<scalar_t>& projection)
      : params_(params), tile_(params, projection) {}

  // Leaves the maximum of every token alone where its log scale will be.
  void find_tops(const RowTile& tile, int64_t head) {
    tile_.enter(tile, head);
    if (params_.kind == RandomFeatures::kPositive) {
      tile_.project();
    }
    for (int64_t t = 0; t < tile_.count(); ++t) {
      log_scale(t) = tile_.top(t);
    }
  }

  void run(const RowTile& tile, int64_t head) {
    tile_.enter(tile, head);
    tile_.project();
    for (int64_t t = 0; t < tile_.count(); ++t) {
      if (params_.stabilizer == Stabilizer::kNone) {
        log_scale(t) = 0;
      } else if (params_.stabilizer == Stabilizer::kToken) {
        log_scale(t) = running_maximum(tile_.initial(), tile_.top(t));
      }
      write(t, log_scale(t));
    }
  }

 private:
  acc_t& log_scale(int64_t t) const {
    return static_cast<acc_t*>(params_.log_scale)[tile_.line(t)];
  }

  void write(int64_t t, acc_t m) const {
    const acc_t root =
        acc_t(1) / std::sqrt(static_cast<acc_t>(params_.projections));
    const Vec<acc_t> factor(root);
    const Vec<acc_t> eps(static_cast<acc_t>(params_.eps));
    const int64_t R = params_.projections;
    const acc_t* p = tile_.projected(t);
    scalar_t* target = static_cast<scalar_t*>(params_.output) +
        tile_.offset(params_.output_stride, t);
    const auto store = [&](int64_t r, const Vec<acc_t>& x) {
      store_partial(target + r, x, min_index(kLane, R - r % R));
    };
    switch (params_.kind) {
      case RandomFeatures::kPositive: {
        const Vec<acc_t> norm(tile_.norm(t));
        const Vec<acc_t> top(m);
        const bool bounded = params_.stabilizer != Stabilizer::kNone;
        for (int64_t r = 0; r < R; r += kLane) {
          const Vec<acc_t> x = Vec<acc_t>::loadu(p + r) - top - norm;
          const Vec<acc_t> y = bounded ? exponential(x) : x.exp();
          store(r, at::vec::fmadd(y, factor, eps));
        }
        break;
      }
      case RandomFeatures::kTrigonometric:
      case RandomFeatures::kSinCos: {
        const Vec<acc_t> size(
            params_.kind == RandomFeatures::kSinCos
                ? root
                : root * std::exp(tile_.norm(t) - m));
        for (int64_t r = 0; r < R; r += kLane) {
          const Vec<acc_t> x = Vec<acc_t>::loadu(p + r);
          store(r, at::vec::fmadd(x.sin(), size, eps));
          store(R + r, at::vec::fmadd(x.cos(), size, eps));
        }
        break;
      }
      case RandomFeatures::kRelu:
        for (int64_t r = 0; r < R; r += kLane) {
          const Vec<acc_t> x = Vec<acc_t>::loadu(p + r) * factor;
          store(r, at::vec::clamp_min(x, Vec<acc_t>(acc_t(0))) + eps);
        }
        break;
    }
  }

  const RandomFeaturesParams& params_;
  Tile<scalar_t> tile_;
};

// Makes log scales of the maxima of single tokens.
template <typename acc_t>
void spread_tops(const RandomFeaturesParams& params, const RowTiles& tiles) {
  for_each_row(
      params, tiles, [&](int64_t row_head, int64_t line, int64_t count) {
        acc_t* m = static_cast<acc_t*>(params.log_scale) + line;
        acc_t top = initial_of<acc_t>(params, row_head);
        for (int64_t t = 0; t < count; ++t) {
          m[t] = top = running_maximum(top, m[t]);
        }
        if (params.stabilizer == Stabilizer::kRow) {
          std::fill_n(m, count, top);
        }
      });
}

template <typename scalar_t>
void forward(const RandomFeaturesParams& params) {
  using acc_t = at::opmath_type<scalar_t>;
  const RowTiles tiles(params.spans, params.rows, params.length, kTile);
  const PackedProjection<scalar_t> projection(params, /*rows=*/false);
  const auto for_tiles = [&](const auto& visit) {
    at::parallel_for(
        0,
        params.heads * tiles.size(),
        tile_grain(params),
        [&](int64_t begin, int64_t end) {
          Forward<scalar_t> worker(params, projection);
          for (int64_t i = begin; i < end; ++i) {
            visit(worker, tiles[i % tiles.size()], i / tiles.size());
          }
        });
  };
  if (params.stabilizer == Stabilizer::kRow ||
      params.stabilizer == Stabilizer::kPrefix) {
    for_tiles([](auto& worker, const RowTile& tile, int64_t head) {
      worker.find_tops(tile, head);
    });
    spread_tops<acc_t>(params, tiles);
  }
  for_tiles([](auto& worker, const RowTile& tile, int64_t head) {
    worker.run(tile, head);
  });
}

// Where the gradients of a token's m go.
template <typename acc_t>
struct Shares {
  // dm of every token; then what each entry that attains the maximum gets.
  acc_t* share; // [B, H, L]
  // The entries of a token that attain its m.
  acc_t* attaining; // [B, H, L]
};

// With E the features without eps and g their gradient, of a token:
//
//   positive        dp = g E                        dn = -sum(g E)
//   trigonometric   dp = g_sin E_cos - g_cos E_sin  dn = sum(g E)
//   sincos          dp = g_sin E_cos - g_cos E_sin
//   relu            dp = R^-1/2 g where p > 0
//
// and dm = ds - sum(g E), which goes to the p or n that m is a maximum of. Then
// dx = scale (dp W + dn scale x) and dW = dp^T (scale x).
template <typename scalar_t>
class Backward {
 public:
  using acc_t = at::opmath_type<scalar_t>;
  static constexpr int64_t kLane = kLanes<acc_t>;

  Backward(
      const RandomFeaturesParams& params,
      const RandomFeaturesGradients& gradients,
      const PackedProjection<scalar_t>& projection,
      const Shares<acc_t>& shares)
      : params_(params),
        gradients_(gradients),
        packed_(projection),
        shares_(shares),
        through_(
            params.stabilizer != Stabilizer::kNone &&
            params.stabilizer_gradient),
        tile_(params, projection),
        grad_projected_(kTile * tile_.projected_stride()),
        grad_input_(kTile * tile_.input_stride()) {}

  // Everything that does not depend on other tokens; `sum` [R, D] takes the
  // gradient of the projection.
  void run(const RowTile& tile, int64_t head, acc_t* sum) {
    tile_.enter(tile, head);
    tile_.project();
    for (int64_t t = 0; t < tile_.count(); ++t) {
      const acc_t own = differentiate(t);
      if (!through_) {
        continue;
      }
      const acc_t grad_m = grad_log_scale(t) - own;
      const acc_t m = log_scale(t);
      acc_t attaining = params_.kind == RandomFeatures::kPositive
          ? count_attaining(t, m)
          : acc_t(tile_.norm(t) == m);
      const int64_t line = tile_.line(t);
      if (params_.stabilizer == Stabilizer::kToken) {
        const bool initial =
            params_.initial_log_scale != nullptr && tile_.initial() == m;
        const acc_t share = grad_m / (attaining + acc_t(initial));
        add_share(t, share);
        if (shares_.share != nullptr) {
          shares_.share[line] = initial ? share : acc_t(0);
        }
      } else {
        // NaN is the last maximum; nothing equals it.
        if (attaining == 0 && std::isnan(tile_.top(t))) {
          attaining = 1;
        }
        shares_.share[line] = grad_m;
        shares_.attaining[line] = attaining;
      }
    }
    write_input();
    if (sum != nullptr) {
      multiply<acc_t>(
          params_.projections,
          tile_.input_stride() / kLane,
          tile_.count(),
          grad_projected_.get(),
          1,
          tile_.projected_stride(),
          tile_.input(0),
          tile_.input_stride(),
          kLane,
          sum,
          tile_.input_stride(),
          true);
    }
  }

  // Does a tile again, now that the shares are known.
  void add_shares(const RowTile& tile, int64_t head, acc_t* sum) {
    tile_.enter(tile, head);
    bool some = false;
    for (int64_t t = 0; t < tile_.count(); ++t) {
      some |= shares_.share[tile_.line(t)] != 0;
    }
    if (!some) {
      return;
    }
    tile_.project();
    for (int64_t t = 0; t < tile_.count(); ++t) {
      const acc_t share = shares_.share[tile_.line(t)];
      differentiate(t);
      if (share != 0) {
        add_share(t, share);
        if (sum != nullptr && params_.kind == RandomFeatures::kPositive) {
          add_outer_product(t, share, sum);
        }
      }
    }
    write_input();
  }

 private:
  acc_t log_scale(int64_t t) const {
    return static_cast<const acc_t*>(params_.log_scale)[tile_.line(t)];
  }

  acc_t grad_log_scale(int64_t t) const {
    return gradients_.grad_log_scale == nullptr
        ? acc_t(0)
        : static_cast<const acc_t*>(gradients_.grad_log_scale)[tile_.line(t)];
  }

  acc_t* grad_projected(int64_t t) const {
    return grad_projected_.get() + t * tile_.projected_stride();
  }

  acc_t count_attaining(int64_t t, acc_t m) const {
    const acc_t* p = tile_.projected(t);
    int32_t count = 0;
    for (int64_t r = 0; r < params_.projections; ++r) {
      count += static_cast<int32_t>(p[r] == m);
    }
    return static_cast<acc_t>(count);
  }

  void add_share(int64_t t, acc_t share) {
    if (params_.kind == RandomFeatures::kTrigonometric) {
      grad_norm_[t] += tile_.norm(t) == log_scale(t) ? share : acc_t(0);
      return;
    }
    const acc_t m = log_scale(t);
    const acc_t* p = tile_.projected(t);
    acc_t* grad = grad_projected(t);
    for (int64_t r = 0; r < params_.projections; ++r) {
      grad[r] += p[r] == m ? share : acc_t(0);
    }
  }

  void add_outer_product(int64_t t, acc_t share, acc_t* sum) const {
    const acc_t m = log_scale(t);
    const acc_t* p = tile_.projected(t);
    const Vec<acc_t> factor(share);
    for (int64_t r = 0; r < params_.projections; ++r) {
      if (p[r] != m) {
        continue;
      }
      acc_t* line = sum + r * tile_.input_stride();
      for (int64_t d = 0; d < tile_.input_stride(); d += kLane) {
        at::vec::fmadd(
            factor,
            Vec<acc_t>::loadu(tile_.input(t) + d),
            Vec<acc_t>::loadu(line + d))
            .store(line + d);
      }
    }
  }

  // dp and dn with m constant. Returns sum(g E).
  acc_t differentiate(int64_t t) {
    const int64_t R = params_.projections;
    const acc_t root = acc_t(1) / std::sqrt(static_cast<acc_t>(R));
    const Vec<acc_t> factor(root);
    const Vec<acc_t> zero(acc_t(0));
    const acc_t* p = tile_.projected(t);
    acc_t* grad = grad_projected(t);
    grad_norm_[t] = 0;
    if (gradients_.grad_output == nullptr) {
      std::fill_n(grad, tile_.projected_stride(), acc_t(0));
      return 0;
    }
    const scalar_t* outer =
        static_cast<const scalar_t*>(gradients_.grad_output) +
        tile_.offset(gradients_.grad_output_stride, t);
    Vec<acc_t> sum(acc_t(0));
    // Calls visit(p, r) for vectors of p, which gives (dp, terms of the sum);
    // nothing beyond R counts.
    const auto for_vectors = [&](const auto& visit) {
      for (int64_t r = 0; r < R; r += kLane) {
        auto [product, term] = visit(Vec<acc_t>::loadu(p + r), r);
        if (r + kLane > R) {
          product = Vec<acc_t>::set(zero, product, R - r);
          term = Vec<acc_t>::set(zero, term, R - r);
        }
        product.store(grad + r);
        sum = sum + term;
      }
    };
    const auto load = [&](int64_t r, int64_t base) {
      return r + kLane <= R ? load_vector(outer + base + r)
                            : load_partial(outer + base + r, R - r);
    };
    using Pair = std::pair<Vec<acc_t>, Vec<acc_t>>;
    switch (params_.kind) {
      case RandomFeatures::kPositive: {
        const Vec<acc_t> norm(tile_.norm(t));
        const Vec<acc_t> top(log_scale(t));
        const bool bounded = params_.stabilizer != Stabilizer::kNone;
        for_vectors([&](const Vec<acc_t>& x, int64_t r) {
          const Vec<acc_t> y = x - top - norm;
          const Vec<acc_t> product =
              (bounded ? exponential(y) : y.exp()) * factor * load(r, 0);
          return Pair(product, product);
        });
        grad_norm_[t] = -reduce_sum(sum);
        break;
      }
      case RandomFeatures::kTrigonometric:
      case RandomFeatures::kSinCos: {
        const bool bare = params_.kind == RandomFeatures::kSinCos;
        const Vec<acc_t> size(
            bare ? root : root * std::exp(tile_.norm(t) - log_scale(t)));
        for_vectors([&](const Vec<acc_t>& x, int64_t r) {
          const Vec<acc_t> sine = x.sin() * size;
          const Vec<acc_t> cosine = x.cos() * size;
          const Vec<acc_t> of_sine = load(r, 0);
          const Vec<acc_t> of_cosine = load(r, R);
          return Pair(
              of_sine * cosine - of_cosine * sine,
              of_sine * sine + of_cosine * cosine);
        });
        grad_norm_[t] = bare ? acc_t(0) : reduce_sum(sum);
        break;
      }
      case RandomFeatures::kRelu:
        for_vectors([&](const Vec<acc_t>& x, int64_t r) {
          return Pair(
              Vec<acc_t>::blendv(zero, load(r, 0) * factor, x > zero), zero);
        });
        break;
    }
    return reduce_sum(sum);
  }

  void write_input() {
    if (gradients_.grad_input == nullptr) {
      return;
    }
    const int64_t stride = tile_.input_stride();
    for (int64_t t = 0; t < tile_.count(); ++t) {
      load_row(
          tile_.input(t),
          params_.head_dim,
          grad_input_.get() + t * stride,
          grad_norm_[t]);
    }
    multiply<acc_t>(
        tile_.count(),
        stride / kLane,
        params_.projections,
        grad_projected_.get(),
        tile_.projected_stride(),
        1,
        packed_.rows(tile_.projection_head()),
        stride,
        kLane,
        grad_input_.get(),
        stride,
        true);
    for (int64_t t = 0; t < tile_.count(); ++t) {
      store_row(
          grad_input_.get() + t * stride,
          params_.head_dim,
          static_cast<scalar_t*>(gradients_.grad_input) +
              tile_.offset(gradients_.grad_input_stride, t),
          static_cast<acc_t>(params_.scale));
    }
  }

  const RandomFeaturesParams& params_;
  const RandomFeaturesGradients& gradients_;
  const PackedProjection<scalar_t>& packed_;
  const Shares<acc_t>& shares_;
  bool through_; // gradients flow through m
  Tile<scalar_t> tile_;
  Scratch<acc_t> grad_projected_; // [tile, R]: dp
  Scratch<acc_t> grad_input_;     // [tile, D]
  acc_t grad_norm_[kTile];        // dn
};

// Turns the gradients dm of a row's tokens into shares; returns that of the
// initial value.
template <typename acc_t>
acc_t share_row(
    acc_t initial,
    bool has_initial,
    const acc_t* m,
    int64_t count,
    acc_t* share,
    const acc_t* attaining) {
  double sum = 0;
  double entries = has_initial && count > 0 && initial == m[0] ? 1 : 0;
  const bool attained = entries > 0;
  for (int64_t t = 0; t < count; ++t) {
    sum += share[t];
    entries += attaining[t];
  }
  const auto each = static_cast<acc_t>(sum / entries);
  for (int64_t t = 0; t < count; ++t) {
    share[t] = attaining[t] > 0 ? each : acc_t(0);
  }
  return attained ? each : acc_t(0);
}

// The last token that attained the running maximum gets it.
template <typename acc_t>
acc_t share_prefix(int64_t count, acc_t* share, const acc_t* attaining) {
  double sum = 0;
  for (int64_t t = count - 1; t >= 0; --t) {
    sum += share[t];
    if (attaining[t] > 0) {
      share[t] = static_cast<acc_t>(sum / attaining[t]);
      sum = 0;
    } else {
      share[t] = 0;
    }
  }
  return static_cast<acc_t>(sum);
}

template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
void share_maxima(
    const RandomFeaturesParams& params,
    const RandomFeaturesGradients& gradients,
    const RowTiles& tiles,
    const Shares<acc_t>& shares) {
  for_each_row(
      params, tiles, [&](int64_t row_head, int64_t line, int64_t count) {
        acc_t* share = shares.share + line;
        acc_t initial = 0;
        if (params.stabilizer == Stabilizer::kToken) {
          double sum = 0;
          for (int64_t t = 0; t < count; ++t) {
            sum += share[t];
          }
          initial = static_cast<acc_t>(sum);
        } else if (params.stabilizer == Stabilizer::kRow) {
          initial = share_row<acc_t>(
              initial_of<acc_t>(params, row_head),
              params.initial_log_scale != nullptr,
              static_cast<const acc_t*>(params.log_scale) + line,
              count,
              share,
              shares.attaining + line);
        } else {
          initial = share_prefix<acc_t>(count, share, shares.attaining + line);
        }
        if (gradients.grad_initial_log_scale != nullptr) {
          static_cast<acc_t*>(gradients.grad_initial_log_scale)[row_head] =
              initial;
        }
      });
}

// The sums of all groups and of the heads that share a projection, in order.
template <typename scalar_t, typename acc_t = at::opmath_type<scalar_t>>
void fold(
    const RandomFeaturesParams& params,
    const acc_t* sums, // [H, groups, R, D], vectors padded
    int64_t groups,
    scalar_t* grad_projection) {
  const int64_t R = params.projections;
  const int64_t D = params.head_dim;
  const int64_t width = round_to_lanes<acc_t>(D);
  const int64_t parts = params.heads / params.projection_heads * groups;
  at::parallel_for(
      0,
      params.projection_heads * R,
      max_index(kSerialWork / max_index(parts * width, 1), 1),
      [&](int64_t begin, int64_t end) {
        const Scratch<acc_t> total(width);
        for (int64_t i = begin; i < end; ++i) {
          std::fill_n(total.get(), width, acc_t(0));
          for (int64_t part = 0; part < parts; ++part) {
            add_row(
                sums + ((i / R * parts + part) * R + i % R) * width,
                width,
                total.get());
          }
          store_row(total.get(), D, grad_projection + i * D);
        }
      });
}

template <typename scalar_t>
void backward(
    const RandomFeaturesParams& params,
    const RandomFeaturesGradients& gradients) {
  using acc_t = at::opmath_type<scalar_t>;
  const RowTiles tiles(params.spans, params.rows, params.length, kTile);
  const PackedProjection<scalar_t> projection(
      params, gradients.grad_input != nullptr);
  const int64_t per_group =
      max_index(kGroupTiles, ceil_divide(tiles.size(), kGroups));
  const int64_t groups = ceil_divide(tiles.size(), per_group);
  const int64_t sum_size =
      params.projections * round_to_lanes<acc_t>(params.head_dim);
  const bool wants_sums = gradients.grad_projection != nullptr;
  const Scratch<acc_t> sums(wants_sums ? params.heads * groups * sum_size : 0);

  const bool through =
      params.stabilizer != Stabilizer::kNone && params.stabilizer_gradient;
  const bool apart = through && params.stabilizer != Stabilizer::kToken;
  const bool shared =
      apart || (through && gradients.grad_initial_log_scale != nullptr);
  const int64_t lines = params.batch * params.heads * params.length;
  const Scratch<acc_t> share(shared ? lines : 0);
  const Scratch<acc_t> attaining(apart ? lines : 0);
  const Shares<acc_t> shares{
      shared ? share.get() : nullptr, apart ? attaining.get() : nullptr};

  const auto for_tiles = [&](const auto& visit) {
    at::parallel_for(
        0,
        params.heads * groups,
        max_index(tile_grain(params) / per_group, 1),
        [&](int64_t begin, int64_t end) {
          Backward<scalar_t> worker(params, gradients, projection, shares);
          for (int64_t i = begin; i < end; ++i) {
            acc_t* sum = wants_sums ? sums.get() + i * sum_size : nullptr;
            const int64_t first = i % groups * per_group;
            const int64_t last = min_index(first + per_group, tiles.size());
            visit(worker, Range{first, last}, i / groups, sum);
          }
        });
  };
  for_tiles([&](auto& worker, const Range& range, int64_t head, acc_t* sum) {
    if (sum != nullptr) {
      std::fill_n(sum, sum_size, acc_t(0));
    }
    for (int64_t i = range.begin; i < range.end; ++i) {
      worker.run(tiles[i], head, sum);
    }
  });
  if (shared) {
    share_maxima<scalar_t>(params, gradients, tiles, shares);
  } else if (gradients.grad_initial_log_scale != nullptr) {
    std::fill_n(
        static_cast<acc_t*>(gradients.grad_initial_log_scale),
        params.rows * params.heads,
        acc_t(0));
  }
  if (apart) {
    for_tiles([&](auto& worker, const Range& range, int64_t head, acc_t* sum) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        worker.add_shares(tiles[i], head, sum);
      }
    });
  }
  if (wants_sums) {
    fold<scalar_t>(
        params,
        sums.get(),
        groups,
        static_cast<scalar_t*>(gradients.grad_projection));
  }
}

void forward_kernel(const RandomFeaturesParams& params, c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "random_features", [&] {
        forward<scalar_t>(params);
      });
}

void backward_kernel(
    const RandomFeaturesParams& params,
    const RandomFeaturesGradients& gradients,
    c10::ScalarType dtype) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, dtype, "random_features_backward", [&] {
        backward<scalar_t>(params, gradients);
      });
}

} // namespace

} // namespace subquad

namespace at::native {

ALSO_REGISTER_AVX512_DISPATCH(
    subquad_random_features_forward_stub,
    &subquad::forward_kernel)
ALSO_REGISTER_AVX512_DISPATCH(
    subquad_random_features_backward_stub,
    &subquad::backward_kernel)

} // namespace at::native
