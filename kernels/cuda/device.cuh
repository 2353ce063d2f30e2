// What the kernels need of CUDA, in one place: compiled by nvcc these are the real thing; with PYMTG_EMULATED
// a host compiler takes the same sources and tests/emulator/cuda_emulator.hpp runs their threads one by one.
#pragma once

#include <cstdint>

#ifdef PYMTG_EMULATED
#include "cuda_emulator.hpp"
#else
#include <cuda_runtime_api.h>
#define PYMTG_GLOBAL __global__
#define PYMTG_DEVICE __device__ __forceinline__
#define PYMTG_HOST_DEVICE __host__ __device__ __forceinline__
#define PYMTG_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define PYMTG_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define PYMTG_LAUNCH(kernel, grid, threads, bytes, stream, ...) \
  kernel<<<grid, threads, bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#endif

namespace pymtg {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of every block
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

#if defined(__CUDACC__) || defined(PYMTG_EMULATED)  // not where the host only calls
PYMTG_DEVICE float as_float(int32_t bits) { return __int_as_float(bits); }
PYMTG_DEVICE int32_t as_int(float value) { return __float_as_int(value); }
PYMTG_DEVICE bool is_finite(float value) { return (as_int(value) & 0x7f800000) != 0x7f800000; }
PYMTG_DEVICE int lane_number() { return static_cast<int>(threadIdx.x) % kWarp; }
PYMTG_DEVICE int warp_number() { return static_cast<int>(threadIdx.x) / kWarp; }
#endif

}  // namespace cuda
}  // namespace pymtg
