// A vector of doubles of the instruction set being built; for hot sources only (csrc/isa.hpp).
#pragma once

namespace pymtg {
namespace PYMTG_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif

#if defined(__GNUC__)
typedef double Vector __attribute__((vector_size(kLanes * sizeof(double)), aligned(8), may_alias));
#else
struct Vector {
  double lane[kLanes];
};
inline Vector operator*(const Vector& v, double s) {
  Vector r;
  for (int l = 0; l < kLanes; ++l) r.lane[l] = v.lane[l] * s;
  return r;
}
inline Vector operator*(const Vector& v, const Vector& w) {
  Vector r;
  for (int l = 0; l < kLanes; ++l) r.lane[l] = v.lane[l] * w.lane[l];
  return r;
}
inline Vector operator-(const Vector& v, double s) {
  Vector r;
  for (int l = 0; l < kLanes; ++l) r.lane[l] = v.lane[l] - s;
  return r;
}
inline Vector& operator+=(Vector& a, const Vector& b) {
  for (int l = 0; l < kLanes; ++l) a.lane[l] += b.lane[l];
  return a;
}
#endif

inline const Vector& load(const double* p) { return *reinterpret_cast<const Vector*>(p); }
inline Vector& at(double* p) { return *reinterpret_cast<Vector*>(p); }

}  // namespace
}  // namespace PYMTG_ISA_NAMESPACE
}  // namespace pymtg
