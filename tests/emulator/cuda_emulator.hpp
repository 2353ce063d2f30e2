// CUDA for a host compiler: runs the kernels of kernels/cuda, as they stand, on the CPU.
//
// Every thread of a block is a context of its own that runs until the next barrier, shuffle, fence or atomic
// operation. Which one runs next is drawn anew each time, so that a missing barrier shows in the results
// sooner or later. Shared memory is NaN before a block begins. Blocks come in an order drawn anew, a few at a
// time. What that does not show: stale caches and stores that others see out of order, which fences are there
// for.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#define PYMTG_GLOBAL inline
#define PYMTG_DEVICE inline
#define PYMTG_HOST_DEVICE inline
#define PYMTG_BOUNDS(threads, blocks)
#define PYMTG_SHARED(name) unsigned char* name = emulator::Block::current->shared()
#define PYMTG_LAUNCH(kernel, grid, threads, bytes, stream, ...) \
  emulator::launch([&] { kernel(__VA_ARGS__); }, grid, threads, bytes, stream)

using std::max;
using std::min;

enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulator"; }

struct Index {
  unsigned x;
};

namespace emulator {

constexpr unsigned kLanes = 32;
constexpr std::size_t kStack = 64 * 1024;

enum class State { runnable, at_block_barrier, at_warp_barrier, done };

// A stack of its own, which is entered once and left and gone back to by jumps: they cost no system call.
struct Thread {
  std::unique_ptr<char[]> stack;
  jmp_buf where;
  State state = State::done;
};

inline std::mt19937& random() {
  static std::mt19937 generator{std::random_device{}()};
  return generator;
}

// One block at work. Threads call sync_block, sync_warp and give_way; step() hands the processor round once.
class Block {
 public:
  static inline Block* current = nullptr;

  Block(std::function<void()> body, unsigned number, std::vector<Thread>& threads, std::size_t shared_bytes)
      : body_(std::move(body)),
        number_(number),
        threads_(threads),
        shared_((shared_bytes + 15) / 16),
        values_(threads.size()) {
    for (auto& vector : shared_) std::memset(&vector, 0xff, sizeof vector);
    for (Thread& thread : threads_) thread.state = State::runnable;
  }

  // Whether there is more to do.
  bool step() {
    current = this;
    std::vector<unsigned> order;
    for (unsigned i = 0; i < threads_.size(); ++i)
      if (threads_[i].state == State::runnable) order.push_back(i);
    if (release_warps()) return true;
    if (order.empty()) return release_block();
    // Some warps stand still for a while, so that others get ahead of them as far as barriers allow.
    if (random()() % 16 == 0) moving_ = random()();
    const auto still = [&](unsigned i) { return (moving_ >> (i / kLanes) & 1) == 0; };
    if (!std::all_of(order.begin(), order.end(), still))
      order.erase(std::remove_if(order.begin(), order.end(), still), order.end());
    std::shuffle(order.begin(), order.end(), random());
    for (unsigned i : order) resume(i);
    return true;
  }

  void give_way() { wait(State::runnable); }
  void sync_block() { wait(State::at_block_barrier); }
  void sync_warp() { wait(State::at_warp_barrier); }
  unsigned char* shared() { return reinterpret_cast<unsigned char*>(shared_.data()); }
  unsigned thread() const { return running_; }
  unsigned number() const { return number_; }
  std::vector<Thread>& threads() { return threads_; }

  // The value of another lane; all lanes of the warp take part.
  uint32_t exchange(uint32_t value, unsigned lane) {
    values_[running_] = value;
    sync_warp();
    const uint32_t other = values_[running_ / kLanes * kLanes + lane];
    sync_warp();
    return other;
  }

  bool any(bool value) {
    values_[running_] = value;
    sync_block();
    const bool result = std::any_of(values_.begin(), values_.end(), [](uint32_t v) { return v != 0; });
    sync_block();
    return result;
  }

 private:
  struct alignas(16) Vector {
    unsigned char bytes[16];
  };

  static void entry() {
    for (;;) {
      current->body_();
      current->wait(State::done);
    }
  }

  void resume(unsigned i) {
    running_ = i;
    if (_setjmp(scheduler_) != 0) return;
    if (threads_[i].stack != nullptr) _longjmp(threads_[i].where, 1);
    threads_[i].stack.reset(new char[kStack]);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = threads_[i].stack.get();
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, &Block::entry, 0);
    setcontext(&context);
  }

  void wait(State state) {
    Thread& thread = threads_[running_];
    thread.state = state;
    if (_setjmp(thread.where) == 0) _longjmp(scheduler_, 1);
  }

  // Lets warps go on whose lanes have all come; whether there were any.
  bool release_warps() {
    bool released = false;
    for (std::size_t first = 0; first < threads_.size(); first += kLanes) {
      const auto begin = threads_.begin() + static_cast<std::ptrdiff_t>(first);
      const auto end =
          begin + static_cast<std::ptrdiff_t>(std::min<std::size_t>(kLanes, threads_.size() - first));
      const auto waits = [](const Thread& thread) { return thread.state == State::at_warp_barrier; };
      if (!std::all_of(begin, end, waits)) continue;
      std::for_each(begin, end, [](Thread& thread) { thread.state = State::runnable; });
      released = true;
    }
    return released;
  }

  // Lets the block go on, of which nobody can run; false where all are done.
  bool release_block() {
    bool waiting = false;
    for (Thread& thread : threads_) {
      if (thread.state == State::at_warp_barrier)
        throw std::logic_error("some lanes of a warp miss a barrier");
      waiting |= thread.state == State::at_block_barrier;
      if (thread.state == State::at_block_barrier) thread.state = State::runnable;
    }
    return waiting;
  }

  std::function<void()> body_;
  unsigned number_;
  std::vector<Thread>& threads_;
  std::vector<Vector> shared_;
  std::vector<uint32_t> values_;
  jmp_buf scheduler_;
  unsigned running_ = 0;
  uint32_t moving_ = random()();
};

struct ThreadIndex {
  struct X {
    operator unsigned() const { return Block::current->thread(); }
  } x;
};

struct BlockIndex {
  struct X {
    operator unsigned() const { return Block::current->number(); }
  } x;
};

inline Index grid_size{0};
inline int launches = 0;

// Of the blocks that run at the same time. Threads outlive a block: the next one finds them waiting for work.
inline std::vector<std::vector<Thread>>& pools(unsigned threads) {
  static std::vector<std::vector<Thread>> all;
  if (all.empty() || all[0].size() != threads) {
    all.clear();
    for (int i = 0; i < 3; ++i) all.emplace_back(threads);
  }
  return all;
}

inline void launch(std::function<void()> kernel, unsigned grid, unsigned threads, std::size_t shared_bytes,
                   void* stream) {
  if (stream != nullptr) throw std::logic_error("the emulator has the default stream only");
  ++launches;
  if (grid == 0) throw std::logic_error("a launch of no blocks");
  grid_size.x = grid;
  std::vector<unsigned> order(grid);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random());
  std::vector<std::vector<Thread>*> idle;
  for (auto& pool : pools(threads)) idle.push_back(&pool);
  std::vector<std::unique_ptr<Block>> running;
  while (!order.empty() || !running.empty()) {
    while (!order.empty() && !idle.empty()) {
      running.push_back(std::make_unique<Block>(kernel, order.back(), *idle.back(), shared_bytes));
      order.pop_back();
      idle.pop_back();
    }
    auto& one = running[random()() % running.size()];
    if (one->step()) continue;
    idle.push_back(&one->threads());
    std::swap(one, running.back());
    running.pop_back();
  }
}

inline float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
}

template <class To, class From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

}  // namespace emulator

inline constexpr emulator::ThreadIndex threadIdx{};
inline constexpr emulator::BlockIndex blockIdx{};
#define gridDim emulator::grid_size

inline float __int_as_float(int32_t bits) { return emulator::bits_as<float>(bits); }
inline int32_t __float_as_int(float value) { return emulator::bits_as<int32_t>(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline void __syncthreads() { emulator::Block::current->sync_block(); }
inline bool __syncthreads_or(bool value) { return emulator::Block::current->any(value); }
inline void __syncwarp() { emulator::Block::current->sync_warp(); }
inline void __threadfence() { emulator::Block::current->give_way(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const unsigned lane = threadIdx.x % emulator::kLanes ^ static_cast<unsigned>(mask);
  return emulator::bits_as<T>(emulator::Block::current->exchange(emulator::bits_as<uint32_t>(value), lane));
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulator::bits_as<T>(
      emulator::Block::current->exchange(emulator::bits_as<uint32_t>(value), static_cast<unsigned>(lane)));
}

// Threads give way where they say so only: between two such places everything is atomic.
template <class T>
T atomicCAS(T* at, T expected, T value) {
  emulator::Block::current->give_way();
  const T before = *at;
  if (before == expected) *at = value;
  return before;
}
template <class T>
T atomicExch(T* at, T value) {
  emulator::Block::current->give_way();
  return std::exchange(*at, value);
}
template <class T>
T atomicAdd(T* at, T value) {
  emulator::Block::current->give_way();
  return std::exchange(*at, *at + value);
}
template <class T>
T atomicMin(T* at, T value) {
  emulator::Block::current->give_way();
  return std::exchange(*at, std::min(*at, value));
}
template <class T>
T atomicMax(T* at, T value) {
  emulator::Block::current->give_way();
  return std::exchange(*at, std::max(*at, value));
}
template <class T>
T atomicOr(T* at, T value) {
  emulator::Block::current->give_way();
  return std::exchange(*at, *at | value);
}
