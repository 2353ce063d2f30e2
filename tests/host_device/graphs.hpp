// CUDA graphs: the operators of a capture, to be run again over the same memory.
#pragma once

#include <functional>
#include <vector>

#include "memory.hpp"

namespace host_device {

struct Graphs {
  std::vector<std::function<void()>> recorded;
  std::vector<std::vector<std::function<void()>>> finished;

  static Graphs& get() {
    static Graphs& graphs = *new Graphs;
    return graphs;
  }
  static bool capturing() { return Blocks::get().capturing; }

  void begin() {
    recorded.clear();
    Blocks::get().begin_capture();
  }
  int64_t end() {
    Blocks::get().end_capture();
    finished.push_back(std::move(recorded));
    recorded.clear();
    return static_cast<int64_t>(finished.size()) - 1;
  }
  // From operator `first` up to `end`, -1 for all: kernels that are no operators come in between.
  void replay(int64_t graph, int64_t first, int64_t end) {
    at::NoGradGuard guard;
    const auto& steps = finished.at(graph);
    const int64_t last = end < 0 ? static_cast<int64_t>(steps.size()) : end;
    for (int64_t i = first; i < last; ++i) steps.at(i)();
  }
};

}  // namespace host_device
