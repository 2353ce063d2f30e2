// What makes the host wait for a device: counted, an error where a test or the capture of a graph forbids it.
#pragma once

#include <c10/util/Exception.h>

#include <atomic>
#include <string>

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

}  // namespace host_device
