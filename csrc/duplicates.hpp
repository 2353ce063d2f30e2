// Which rows of a batch share their sample id with another row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pymtg {

class Duplicates {
 public:
  Duplicates(const int64_t* ids, int64_t rows);

  // Position of the row among the rows with duplicates, in the order of the batch; -1 where its id is unique.
  int64_t place(int64_t row) const { return places_.empty() ? -1 : places_[static_cast<std::size_t>(row)]; }
  int64_t row(int64_t place) const { return rows_[static_cast<std::size_t>(place)]; }
  int64_t size() const { return static_cast<int64_t>(rows_.size()); }

 private:
  std::vector<int64_t> places_;  // empty where all ids are unique
  std::vector<int64_t> rows_;
};

}  // namespace pymtg
