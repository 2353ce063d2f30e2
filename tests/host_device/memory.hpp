// The memory of the pretended device, which is the host's, and pinned memory.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <vector>

namespace host_device {

const c10::Device kDevice(c10::DeviceType::CUDA, 0);

// What is allocated. Nothing here is destroyed: tensors may outlive static objects.
struct Blocks {
  std::mutex lock;
  std::map<void*, size_t> sizes;
  std::map<void*, std::vector<char>> before;  // contents when the capture of a graph began
  std::set<void*> of_graphs;                  // a graph's kernels may write there as long as it is replayed
  bool capturing = false;

  static Blocks& get() {
    static Blocks& blocks = *new Blocks;
    return blocks;
  }

  void add(void* memory, size_t bytes) {
    std::lock_guard<std::mutex> guard(lock);
    sizes[memory] = bytes;
    if (capturing) of_graphs.insert(memory);
  }

  // Whether the memory may be freed.
  bool remove(void* memory) {
    std::lock_guard<std::mutex> guard(lock);
    if (capturing || of_graphs.count(memory)) return false;
    sizes.erase(memory);
    return true;
  }

  void begin_capture() {
    std::lock_guard<std::mutex> guard(lock);
    before.clear();
    for (auto& [memory, bytes] : sizes) {
      auto* begin = static_cast<char*>(memory);
      before[memory].assign(begin, begin + bytes);
    }
    capturing = true;
  }

  // A capture runs nothing: what the work wrote while it was recorded is taken back.
  void end_capture() {
    std::lock_guard<std::mutex> guard(lock);
    capturing = false;
    for (auto& [memory, bytes] : before) std::memcpy(memory, bytes.data(), bytes.size());
    before.clear();
  }
};

inline void* allocated(size_t bytes) {
  constexpr size_t kAlignment = 512;  // that of CUDA's caching allocator
  return bytes == 0 ? nullptr
                    : std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
}

struct DeviceMemory final : c10::Allocator {
  static void give_back(void* memory) {
    if (memory != nullptr && Blocks::get().remove(memory)) std::free(memory);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = allocated(bytes);
    if (memory != nullptr) {
      std::memset(memory, 0xAB, bytes);  // nobody may count on zeros
      Blocks::get().add(memory, bytes);
    }
    return {memory, memory, &give_back, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

  static DeviceMemory& get() {
    static DeviceMemory& memory = *new DeviceMemory;
    return memory;
  }
};

struct PinnedMemory final : c10::Allocator {
  std::mutex lock;
  std::map<const char*, size_t> sizes;

  static void give_back(void* memory) {
    auto& pinned = get();
    std::lock_guard<std::mutex> guard(pinned.lock);
    pinned.sizes.erase(static_cast<const char*>(memory));
    std::free(memory);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = allocated(bytes);
    std::lock_guard<std::mutex> guard(lock);
    if (memory != nullptr) sizes[static_cast<const char*>(memory)] = bytes;
    return {memory, memory, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

  bool holds(const void* pointer) {
    const auto* address = static_cast<const char*>(pointer);
    std::lock_guard<std::mutex> guard(lock);
    auto after = sizes.upper_bound(address);
    if (after == sizes.begin()) return false;
    const auto& [begin, bytes] = *--after;
    return address < begin + bytes;
  }

  static PinnedMemory& get() {
    static PinnedMemory& memory = *new PinnedMemory;
    return memory;
  }
};

}  // namespace host_device
