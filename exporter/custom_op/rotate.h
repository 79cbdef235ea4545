// Y = RotateAdaDim(X), without ONNX Runtime: each run of a * b neighbouring channels x becomes (left (x) right) (signs * x) /
// sqrt(a * b), where (x) is the Kronecker product of matrices of +1 and -1.
#ifndef ADADIM_ROTATE_H_
#define ADADIM_ROTATE_H_

#include <vector>

#include "kernel.h"
#include "tiles.h"

namespace adadim {

// A square matrix as it is given, row by row.
struct Square {
  const int8_t* entries;
  int64_t order;
};

// What a Turn's pointers point to. `signs`: K of them; all entries are +1 or -1.
class Rotation {
 public:
  Rotation(const int8_t* signs, int64_t K, Square left, Square right);
  const int64_t channels;  // K
  const Turn& turn() const { return turn_; }

 private:
  std::vector<float> signs_;
  std::vector<SignedSum> left_;
  std::vector<float> right_;
  Turn turn_;
};

// X[rows, K] to Y[rows, K], both float32 or both float16. Throws std::bad_alloc.
struct Rows {
  const void* x;
  void* y;
  int64_t count;
  bool float16;
};
void Rotate(const Rotation& rotation, const Rows& rows, const ParallelFor& parallel_for);

}  // namespace adadim

#endif  // ADADIM_ROTATE_H_
