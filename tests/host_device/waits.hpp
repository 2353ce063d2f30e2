// What is asked of a device: the operators that launch something, while somebody listens; and what makes the
// host wait for it, counted, an error where a test or the capture of a graph forbids it.
#pragma once

#include <c10/util/Exception.h>

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "memory.hpp"

namespace host_device {

struct Waits {
  std::atomic<int64_t> count{0};
  std::atomic<bool> forbidden{false};

  static Waits& get() {
    static Waits& waits = *new Waits;
    return waits;
  }

  void note(const std::string& what) {
    ++count;
    TORCH_CHECK(!Blocks::get().capturing, "operation not permitted when stream is capturing: ", what);
    TORCH_CHECK(!forbidden, "called a synchronizing CUDA operation: ", what);
  }
};

struct Launches {
  std::atomic<bool> listening{false};
  std::mutex lock;
  std::vector<std::string> names;

  static Launches& get() {
    static Launches& launches = *new Launches;
    return launches;
  }

  void note(const std::string& name) {
    if (!listening) return;
    std::lock_guard<std::mutex> guard(lock);
    names.push_back(name);
  }
  std::vector<std::string> noted() {
    std::lock_guard<std::mutex> guard(lock);
    return names;
  }
  void listen(bool begin) {
    std::lock_guard<std::mutex> guard(lock);
    if (begin) names.clear();
    listening = begin;
  }
};

}  // namespace host_device
