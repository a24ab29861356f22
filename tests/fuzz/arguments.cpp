#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "api/subquad.h"

// A fuzz target: bytes become the arguments of one public operator, mostly
// right and sometimes wrong in one of many ways. The operator must either
// compute, forwards and backwards, finite numbers, or refuse with ValueError,
// TypeError or NotImplementedError in the wording of the library. Sanitizers
// watch the rest.

namespace {

using Arguments = std::unordered_map<std::string, c10::IValue>;

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();

// Reads decisions from the bytes; after their end every decision is 0.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size)
      : data_(data), size_(size) {}

  uint8_t byte() {
    return at_ < size_ ? data_[at_++] : 0;
  }

  // One of 0 ... bound - 1.
  int64_t below(int64_t bound) {
    return byte() % bound;
  }

  bool one_in(int64_t bound) {
    return below(bound) == bound - 1;
  }

  // One of 1 ... most, rarely 0.
  int64_t size(int64_t most) {
    return one_in(32) ? 0 : 1 + below(most);
  }

  // Mostly in [low, high], at times next to it or far away.
  int64_t integer(int64_t low, int64_t high) {
    constexpr std::array<int64_t, 12> kOdd = {
        0,
        -1,
        -2,
        kMost,
        kMost - 1,
        kLeast,
        kLeast + 1,
        int64_t{1} << 31,
        -(int64_t{1} << 31),
        int64_t{1} << 40,
        -(int64_t{1} << 40),
        int64_t{1} << 62};
    if (one_in(40)) {
      return kOdd[below(kOdd.size())];
    }
    return low + below(high - low + 1);
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

at::ScalarType floating(Bytes& bytes) {
  constexpr std::array kTypes = {
      at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};
  return kTypes[bytes.below(kTypes.size())];
}

at::ScalarType any_dtype(Bytes& bytes) {
  constexpr std::array kTypes = {
      at::kFloat,
      at::kDouble,
      at::kBFloat16,
      at::kHalf,
      at::kLong,
      at::kInt,
      at::kByte,
      at::kBool,
      at::kComplexFloat};
  return kTypes[bytes.below(kTypes.size())];
}

// The same elements with other strides, or of another shape.
at::Tensor disturb(Bytes& bytes, at::Tensor tensor) {
  const int64_t rank = tensor.dim();
  switch (bytes.below(24)) {
    case 0: // axes in another memory order
      if (rank >= 2) {
        const int64_t a = bytes.below(rank);
        const int64_t b = bytes.below(rank);
        return tensor.transpose(a, b).contiguous().transpose(a, b);
      }
      return tensor;
    case 1: // every second element of a wider tensor
      if (rank >= 1) {
        const int64_t axis = bytes.below(rank);
        return at::cat({tensor, tensor}, axis)
            .slice(axis, bytes.below(2), kMost, 2)
            .narrow(axis, 0, tensor.size(axis));
      }
      return tensor;
    case 2: // stride 0
      if (rank >= 1) {
        const int64_t axis = bytes.below(rank);
        return tensor.size(axis) > 0
            ? tensor.narrow(axis, 0, 1).expand(tensor.sizes())
            : tensor;
      }
      return tensor;
    case 3: // the middle of a larger tensor
      if (rank >= 1) {
        const int64_t axis = bytes.below(rank);
        return at::cat({tensor, tensor, tensor}, axis)
            .narrow(axis, tensor.size(axis), tensor.size(axis));
      }
      return tensor;
    case 4:
      return bytes.one_in(4) ? tensor.unsqueeze(bytes.below(rank + 1)) : tensor;
    case 5:
      return bytes.one_in(4) && rank > 0 && tensor.size(0) > 0
          ? tensor.select(0, 0)
          : tensor;
    case 6:
      return bytes.one_in(4) ? tensor.to(any_dtype(bytes)) : tensor;
    case 7:
      return bytes.one_in(4) ? tensor.to(at::kMeta) : tensor;
    default:
      return tensor;
  }
}

class Generator {
 public:
  explicit Generator(Bytes& bytes)
      : bytes(bytes), dtype_(floating(bytes)) {}

  at::ScalarType dtype() const {
    return dtype_;
  }

  // One axis in 32 has another size than it should.
  std::vector<int64_t> sizes(std::vector<int64_t> right) {
    for (int64_t& size : right) {
      if (bytes.one_in(32)) {
        size = bytes.below(4);
      }
      // A table of a huge window cannot be made, and need not be right.
      size = std::clamp<int64_t>(size, 0, 64);
    }
    return right;
  }

  at::Tensor floats(const std::vector<int64_t>& right) {
    return floats(right, dtype_);
  }

  at::Tensor floats(const std::vector<int64_t>& right, at::ScalarType dtype) {
    const auto shape = sizes(right);
    at::Tensor tensor = at::empty(shape, at::kFloat);
    float* data = tensor.mutable_data_ptr<float>();
    std::minstd_rand numbers(bytes.byte() + 1);
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      data[i] = static_cast<float>(numbers() % 2048) / 512.0f - 2.0f;
    }
    tensor = disturb(bytes, tensor.to(dtype));
    if (tensor.is_floating_point() && !bytes.one_in(4)) {
      tensor.set_requires_grad(true);
    }
    return tensor;
  }

  at::Tensor
  integers(const std::vector<int64_t>& right, int64_t low, int64_t high) {
    const auto shape = sizes(right);
    at::Tensor tensor = at::empty(shape, at::kLong);
    int64_t* data = tensor.mutable_data_ptr<int64_t>();
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      data[i] = bytes.integer(low, high);
    }
    return disturb(bytes, tensor);
  }

  // [0, ..., size], mostly ascending.
  at::Tensor boundaries(int64_t rows, int64_t size) {
    at::Tensor tensor = integers({rows + 1}, 0, std::max<int64_t>(size, 0));
    return tensor.dim() == 1 && tensor.scalar_type() == at::kLong &&
            tensor.is_cpu() && !bytes.one_in(8)
        ? std::get<0>(tensor.sort())
        : tensor;
  }

  // Rows of permutations, at times with a repeated or wrong token.
  at::Tensor order(int64_t rows, int64_t size) {
    const auto shape = sizes({rows, size});
    at::Tensor tensor = at::arange(shape[1]).repeat({shape[0], 1});
    if (tensor.numel() > 0) {
      int64_t* data = tensor.mutable_data_ptr<int64_t>();
      for (int64_t swaps = bytes.below(6); swaps > 0; --swaps) {
        std::swap(
            data[bytes.below(shape[1])], data[bytes.below(tensor.numel())]);
      }
      if (bytes.one_in(16)) {
        data[bytes.below(tensor.numel())] = bytes.integer(0, shape[1]);
      }
    }
    return disturb(bytes, tensor);
  }

  Bytes& bytes;

 private:
  at::ScalarType dtype_;
};

struct Call {
  const char* op;
  std::vector<c10::IValue> positional;
  Arguments named;
  bool bounded = true; // else the right result may be infinite
};

struct Sizes {
  int64_t B, key_heads, H, L, S, D, M;

  explicit Sizes(Bytes& bytes)
      : B(bytes.size(3)),
        key_heads(bytes.size(2)),
        H(key_heads * bytes.size(2)),
        L(bytes.size(20)),
        S(bytes.one_in(2) ? bytes.size(20) : L),
        D(bytes.size(18)),
        M(bytes.one_in(2) ? bytes.size(18) : D) {}
};

// What window_attention and window_attention_weights share. Returns the number
// of rows; packed ones make the batch 1.
int64_t add_window_options(Generator& make, Sizes& n, Arguments& named) {
  Bytes& bytes = make.bytes;
  const int64_t block = bytes.integer(1, 6);
  const int64_t left = bytes.integer(0, 8);
  const int64_t right = bytes.integer(0, 8);
  named["block"] = block;
  named["left"] = left;
  named["right"] = right;
  named["causal"] = bytes.one_in(2);
  // The sum is for the shape of tables, where only small ones count.
  const auto small = [](int64_t value) {
    return std::clamp<int64_t>(value, 0, 64);
  };
  const int64_t slots = small(left) + small(block) + small(right);
  const auto heads = [&] { return bytes.one_in(2) ? n.H : 1; };
  int64_t rows = n.B;
  switch (bytes.below(6)) {
    case 0:
      n.B = bytes.one_in(16) ? n.B : 1;
      rows = bytes.below(4);
      named["cu_seqlens"] = make.boundaries(rows, n.S);
      if (bytes.one_in(2)) {
        named["query_cu_seqlens"] = make.boundaries(rows, n.L);
      }
      break;
    case 1:
      named["lengths"] = make.integers({n.B}, 0, n.S);
      if (bytes.one_in(2)) {
        named["starts"] = make.integers({n.B}, 0, 2);
      }
      break;
    case 2:
      named["query_lengths"] = make.integers({n.B}, 0, n.L);
      if (bytes.one_in(2)) {
        named["query_starts"] = make.integers({n.B}, 0, 2);
      }
      [[fallthrough]];
    case 3:
      named["lengths"] = make.integers({n.B}, 0, n.S);
      named["order"] = make.order(n.B, n.S);
      if (bytes.one_in(2)) {
        named["query_lengths"] = make.integers({n.B}, 0, n.L);
        named["query_order"] = make.order(n.B, n.L);
      }
      break;
    default:
      break;
  }
  if (bytes.one_in(4)) {
    named["query_offset"] = bytes.integer(-4, 12);
  }
  if (bytes.one_in(4)) {
    named["query_position"] = bytes.one_in(2)
        ? make.integers({n.L}, -3, n.S + 3)
        : make.integers({n.B, n.L}, -3, n.S + 3);
  }
  if (bytes.one_in(4)) {
    named["bias"] = make.floats({heads(), block, slots});
  }
  if (bytes.one_in(4)) {
    named["key_bias"] = make.floats({n.B, n.S});
  }
  if (bytes.one_in(4)) {
    named["relative_key"] = make.floats({heads(), slots, n.D});
  }
  if (bytes.one_in(4)) {
    constexpr std::array kScales = {
        0.5,
        0.0,
        -1.0,
        1.0,
        std::numeric_limits<double>::infinity(),
        std::numeric_limits<double>::quiet_NaN()};
    named["scale"] = kScales[bytes.below(kScales.size())];
  }
  return rows;
}

Call window_attention(Generator& make) {
  Bytes& bytes = make.bytes;
  Sizes n(bytes);
  Call call{
      bytes.one_in(2) ? "window_attention" : "window_attention_with_lse",
      {},
      {}};
  const int64_t rows = add_window_options(make, n, call.named);
  call.positional = {
      make.floats({n.B, n.H, n.L, n.D}),
      make.floats({n.B, n.key_heads, n.S, n.D}),
      make.floats({n.B, n.key_heads, n.S, n.M})};
  if (bytes.one_in(3)) {
    const int64_t C = bytes.below(6);
    call.named["summary_key"] = make.floats({rows, n.key_heads, C, n.D});
    call.named["summary_value"] = make.floats({rows, n.key_heads, C, n.M});
    call.named["summary_offset"] = bytes.integer(-2, 3);
    call.named["summary_block"] = bytes.integer(0, 4);
    call.named["summaries_per_block"] = bytes.integer(0, 3);
    if (bytes.one_in(2)) {
      call.named["summary_lengths"] = make.integers({rows}, 0, C);
    }
    if (bytes.one_in(2)) {
      call.named["summary_relative_key"] =
          make.floats({bytes.one_in(2) ? n.H : 1, C + bytes.below(2), n.D});
    }
  }
  if (bytes.one_in(4)) {
    constexpr std::array kRates = {0.25, 0.0, 0.9, 1.0, -0.5};
    call.named["dropout"] = kRates[bytes.below(kRates.size())];
    if (!bytes.one_in(4)) {
      call.named["dropout_state"] = make.integers({2}, 0, 100);
    }
  }
  return call;
}

Call window_attention_weights(Generator& make) {
  Sizes n(make.bytes);
  // Weights are exp(logit - lse), and the lse here is arbitrary.
  Call call{"window_attention_weights", {}, {}, /*bounded=*/false};
  add_window_options(make, n, call.named);
  // The result has an axis of the window's size: no terabytes.
  for (const char* name : {"block", "left", "right"}) {
    const int64_t extent = call.named[name].toInt();
    call.named[name] = extent > 64 && extent < kMost - 1 ? 64 : extent;
  }
  const at::ScalarType sums =
      make.dtype() == at::kDouble ? at::kDouble : at::kFloat;
  call.positional = {
      make.floats({n.B, n.H, n.L, n.D}),
      make.floats({n.B, n.key_heads, n.S, n.D}),
      make.floats({n.B, n.H, n.L}, sums)};
  return call;
}

Call merge_attention(Generator& make) {
  const Sizes n(make.bytes);
  const at::ScalarType sums =
      make.dtype() == at::kDouble ? at::kDouble : at::kFloat;
  return {
      "merge_attention",
      {make.floats({n.B, n.H, n.L, n.M}),
       make.floats({n.B, n.H, n.L}, sums),
       make.floats({n.B, n.H, n.L, n.M}),
       make.floats({n.B, n.H, n.L}, sums)},
      {}};
}

Call mask_to_spans(Generator& make) {
  const int64_t B = make.bytes.below(5);
  const at::Tensor mask =
      make.integers({B, make.bytes.below(20)}, 0, 1).to(at::kBool);
  return {
      "mask_to_spans",
      {make.bytes.one_in(2) ? mask.to(any_dtype(make.bytes)) : mask},
      {}};
}

Call projection(Generator& make) {
  Bytes& bytes = make.bytes;
  std::vector<int64_t> shape;
  for (int64_t rank = bytes.below(4); rank > 0; --rank) {
    shape.push_back(bytes.below(6));
  }
  const int64_t I = bytes.below(10);
  const int64_t O = bytes.below(10);
  shape.push_back(I);
  Call call{"projection", {make.floats(shape), make.floats({O, I})}, {}};
  if (bytes.one_in(2)) {
    call.named["bias"] = make.floats({O});
  }
  return call;
}

// Rows of `tokens` tokens. Returns their number; packed ones make the batch 1.
int64_t
add_rows(Generator& make, int64_t& batch, int64_t tokens, Arguments& named) {
  Bytes& bytes = make.bytes;
  switch (bytes.below(4)) {
    case 0: {
      batch = bytes.one_in(16) ? batch : 1;
      const int64_t rows = bytes.below(4);
      named["cu_seqlens"] = make.boundaries(rows, tokens);
      return rows;
    }
    case 1:
      named["lengths"] = make.integers({batch}, 0, tokens);
      if (bytes.one_in(2)) {
        named["starts"] = make.integers({batch}, 0, 2);
      }
      break;
    case 2:
      named["lengths"] = make.integers({batch}, 0, tokens);
      named["order"] = make.order(batch, tokens);
      break;
    default:
      break;
  }
  return batch;
}

Call linear_attention(Generator& make) {
  Bytes& bytes = make.bytes;
  Sizes n(bytes);
  Call call{
      bytes.one_in(2) ? "linear_attention" : "linear_attention_with_state",
      {},
      {}};
  const int64_t rows = add_rows(make, n.B, n.L, call.named);
  call.positional = {
      make.floats({n.B, n.H, n.L, n.D}),
      make.floats({n.B, n.key_heads, n.L, n.D}),
      make.floats({n.B, n.key_heads, n.L, n.M})};
  const bool causal = !bytes.one_in(4);
  call.named["causal"] = causal;
  call.named["normalize"] = bytes.one_in(2);
  constexpr std::array kMaps = {
      "identity", "relu", "elu", "sigmoid", "softmax", "dpfp", "", "Relu"};
  const size_t map = bytes.below(bytes.one_in(8) ? 8 : 6);
  call.named["query_map"] = std::string(kMaps[map]);
  call.named["key_map"] =
      std::string(kMaps[bytes.one_in(8) ? bytes.below(8) : map]);
  int64_t features = n.D;
  if (kMaps[map] == std::string("dpfp")) {
    const int64_t degree = 1 + bytes.below(3);
    call.named["feature_degree"] = degree;
    features *= 2 * degree;
  }
  const at::ScalarType wide =
      make.dtype() == at::kDouble ? at::kDouble : at::kFloat;
  if (bytes.one_in(3)) {
    const int64_t copies = 1 + bytes.below(3);
    call.named["query_weight"] = make.floats({1, n.L, copies}, wide);
    call.named["key_weight"] = make.floats({n.B, n.L, copies}, wide);
    features *= copies;
  }
  const bool log_scale = bytes.one_in(3);
  if (log_scale) {
    call.named["key_log_scale"] = make.floats({n.B, n.key_heads, n.L}, wide);
  } else if (bytes.one_in(3)) {
    call.named["blindspot"] = static_cast<int64_t>(bytes.below(40));
  }
  if (bytes.one_in(2)) {
    call.named["state_kv"] =
        make.floats({rows, n.key_heads, features, n.M}, wide);
    call.named["state_k"] = make.floats({rows, n.key_heads, features}, wide);
    if (log_scale) {
      call.named["state_log_scale"] = make.floats({rows, n.key_heads}, wide);
    }
  }
  // Numerators may be divided by anything above the floor.
  call.bounded = false;
  return call;
}

Call random_features(Generator& make) {
  Bytes& bytes = make.bytes;
  Sizes n(bytes);
  Call call{"random_features", {}, {}};
  const int64_t rows = add_rows(make, n.B, n.L, call.named);
  const int64_t R = bytes.size(20);
  call.positional = {
      make.floats({n.B, n.H, n.L, n.D}), make.floats({n.key_heads, R, n.D})};
  constexpr std::array kKinds = {
      "positive", "trigonometric", "sincos", "relu", "", "Positive"};
  constexpr std::array kStabilizers = {
      "token", "row", "prefix", "none", "", "tokens"};
  const char* kind = kKinds[bytes.below(bytes.one_in(8) ? 6 : 4)];
  const bool bare = kind == kKinds[2] || kind == kKinds[3];
  call.named["kind"] = std::string(kind);
  call.named["stabilizer"] = std::string(
      bare && !bytes.one_in(8)
          ? "none"
          : kStabilizers[bytes.below(bytes.one_in(8) ? 6 : 4)]);
  call.bounded = bare || call.named["stabilizer"].toStringRef() != "none";
  call.named["stabilizer_gradient"] = bytes.one_in(2);
  if (bytes.one_in(4)) {
    constexpr std::array kNumbers = {
        0.5, 0.0, 1.0, std::numeric_limits<double>::quiet_NaN()};
    call.named["eps"] = kNumbers[bytes.below(kNumbers.size())];
    call.named["scale"] = kNumbers[bytes.below(kNumbers.size())];
  }
  if (bytes.one_in(3)) {
    call.named["initial_log_scale"] = make.floats(
        {rows, n.H}, make.dtype() == at::kDouble ? at::kDouble : at::kFloat);
  }
  return call;
}

Call sequence_pool(Generator& make) {
  Bytes& bytes = make.bytes;
  Sizes n(bytes);
  Call call{
      bytes.one_in(2) ? "sequence_pool" : "sequence_pool_with_lse", {}, {}};
  add_rows(make, n.B, n.S, call.named);
  const int64_t C = bytes.size(20);
  call.positional = {
      make.floats({n.B, n.H, n.S, C}),
      make.floats({n.B, n.key_heads, n.S, n.M})};
  return call;
}

Call make_call(Bytes& bytes) {
  const int64_t op = bytes.below(14);
  Generator make(bytes);
  switch (op) {
    case 0:
      return merge_attention(make);
    case 1:
      return mask_to_spans(make);
    case 2:
      return projection(make);
    case 3:
      return window_attention_weights(make);
    case 4:
    case 5:
      return random_features(make);
    case 6:
    case 7:
      return sequence_pool(make);
    case 8:
    case 9:
      return linear_attention(make);
    default:
      return window_attention(make);
  }
}

void collect_leaves(const c10::IValue& value, std::vector<at::Tensor>& leaves) {
  if (value.isTensor() && value.toTensor().requires_grad()) {
    leaves.push_back(value.toTensor());
  }
}

void check_finite(
    const char* op,
    const char* what,
    const at::Tensor& tensor,
    bool log_sum_exp) {
  if (!tensor.defined() || tensor.is_meta() || !tensor.is_floating_point()) {
    return;
  }
  const at::Tensor bad = log_sum_exp
      ? at::logical_or(tensor.isnan(), tensor.isposinf())
      : tensor.isfinite().logical_not();
  TORCH_INTERNAL_ASSERT(
      !bad.any().item<bool>(), op, ": ", what, " is not finite");
}

void run(const Call& call, Bytes& bytes) {
  std::vector<at::Tensor> leaves;
  for (const auto& value : call.positional) {
    collect_leaves(value, leaves);
  }
  for (const auto& [name, value] : call.named) {
    collect_leaves(value, leaves);
  }
  const auto outputs = subquad::call(call.op, call.positional, call.named);
  std::vector<at::Tensor> roots;
  std::vector<at::Tensor> grads;
  const std::string_view op = call.op;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const at::Tensor output = outputs[i].toTensor();
    const bool lse = i == 1 && op != "mask_to_spans";
    if (call.bounded) {
      check_finite(call.op, "the output", output, lse);
    }
    if (output.requires_grad() && !output.is_meta() && !bytes.one_in(4)) {
      roots.push_back(output);
      grads.push_back(disturb(bytes, at::ones_like(output)));
    }
  }
  if (roots.empty() || leaves.empty()) {
    return;
  }
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].sizes().equals(roots[i].sizes()) ||
        grads[i].scalar_type() != roots[i].scalar_type() ||
        grads[i].is_meta()) {
      grads[i] = at::ones_like(roots[i]); // the engine's business, not ours
    }
  }
  const auto gradients = torch::autograd::grad(
      roots,
      leaves,
      grads,
      /*retain_graph=*/std::nullopt,
      /*create_graph=*/false,
      /*allow_unused=*/true);
  if (call.bounded) {
    for (const at::Tensor& gradient : gradients) {
      check_finite(call.op, "a gradient", gradient, false);
    }
  }
}

// "<op>: <rule>"; the part after the name is what a user reads.
bool in_our_words(const c10::Error& error) {
  const std::string_view text = error.what_without_backtrace();
  for (const char* op :
       {"window_attention",
        "window_attention_weights",
        "merge_attention",
        "mask_to_spans",
        "projection",
        "linear_attention",
        "random_features",
        "sequence_pool"}) {
    const std::string prefix = std::string(op) + ": ";
    if (text.substr(0, prefix.size()) == prefix) {
      return true;
    }
  }
  return false;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const Call call = make_call(bytes);
  try {
    run(call, bytes);
  } catch (const c10::ValueError& error) {
    TORCH_CHECK(in_our_words(error), "not in our words: ", error.what());
  } catch (const c10::TypeError& error) {
    TORCH_CHECK(in_our_words(error), "not in our words: ", error.what());
  } catch (const c10::NotImplementedError& error) {
    // Arguments without storage are refused by the dispatcher.
  }
  return 0;
}
