#include "duplicates.hpp"

namespace pymtg {

// An open-addressing table of the batch's ids: one pass, nothing is sorted.
Duplicates::Duplicates(const int64_t* ids, int64_t rows) {
  if (rows < 2) return;
  int bits = 1;
  while ((int64_t{1} << bits) < 2 * rows) ++bits;
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  std::vector<int32_t> first_row(mask + 1, -1);
  std::vector<int64_t> twins;  // rows found to repeat an earlier row's id, each followed by that row
  for (int64_t row = 0; row < rows; ++row) {
    uint64_t slot = (static_cast<uint64_t>(ids[row]) * 0x9e3779b97f4a7c15u) >> (64 - bits);
    while (first_row[slot] >= 0 && ids[first_row[slot]] != ids[row]) slot = (slot + 1) & mask;
    if (first_row[slot] < 0) {
      first_row[slot] = static_cast<int32_t>(row);
    } else {
      twins.push_back(row);
      twins.push_back(first_row[slot]);
    }
  }
  if (twins.empty()) return;
  places_.assign(static_cast<std::size_t>(rows), -1);
  for (int64_t row : twins) places_[static_cast<std::size_t>(row)] = 0;
  for (int64_t row = 0; row < rows; ++row) {
    if (places_[static_cast<std::size_t>(row)] < 0) continue;
    places_[static_cast<std::size_t>(row)] = size();
    rows_.push_back(row);
  }
}

}  // namespace pymtg
