// A task of so many classes that a block takes one row of it at a time, through shared memory where it fits.
#pragma once

#include "tile.cuh"

namespace pymtg {
namespace cuda {

// What the warps of a block tell each other, before the cached logits.
struct Exchange {
  float values[kWarps];
  int best[kWarps];
};
static_assert(sizeof(Exchange) == kExchangeFloats * sizeof(float), "the cache stands behind it");

PYMTG_DEVICE float block_sum(float value, Exchange& exchange) {
  value = warp_sum(value);
  __syncthreads();
  if (lane_number() == 0) exchange.values[warp_number()] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += exchange.values[w];
  return sum;
}

PYMTG_DEVICE Top block_top(Top top, Exchange& exchange) {
  top = warp_top(top);
  __syncthreads();
  if (lane_number() == 0) {
    exchange.values[warp_number()] = top.value;
    exchange.best[warp_number()] = top.best;
  }
  __syncthreads();
  top = {exchange.values[0], exchange.best[0]};
  for (int w = 1; w < kWarps; ++w) top = higher(top, Top{exchange.values[w], exchange.best[w]});
  return top;
}

// Softmax of one row of a task with more classes than a block has threads. cache: room for all classes, or
// null; to: the row of the gradient, or null.
template <class Logit>
PYMTG_DEVICE Cell softmax_streamed(const Logit* from, int64_t stride, int classes, int label, float weight,
                                   float scale, float* cache, Exchange& exchange, float* to) {
  const int thread = static_cast<int>(threadIdx.x);
  Top top{widened(from[thread * stride]), thread};
#pragma unroll 4
  for (int c = thread; c < classes; c += kThreads) {
    const float x = widened(from[c * stride]);
    if (cache != nullptr) cache[c] = x;
    top = higher(top, x, c);
  }
  top = block_top(top, exchange);
  const float to_chosen = widened(from[label * stride]) - top.value;
  float total = 0.0f;
#pragma unroll 4
  for (int c = thread; c < classes; c += kThreads) {
    const float e = expf((cache != nullptr ? cache[c] : widened(from[c * stride])) - top.value);
    if (cache != nullptr) cache[c] = e;
    total += e;
  }
  total = block_sum(total, exchange);
  if (to != nullptr) {
    const float inverse = 1.0f / total, factor = weight * scale;
#pragma unroll 4
    for (int c = thread; c < classes; c += kThreads) {
      const float e = cache != nullptr ? cache[c] : expf(widened(from[c * stride]) - top.value);
      to[c] = (e * inverse - (c == label ? 1.0f : 0.0f)) * factor;
    }
  }
  return {(logf(total) - to_chosen) * weight, signed_gold(expf(to_chosen) / total, top.best == label)};
}

}  // namespace cuda
}  // namespace pymtg
