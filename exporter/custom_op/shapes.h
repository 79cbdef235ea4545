// The shapes of a node's weights, from its attributes (docs/matmul-adadim.md).
#ifndef ADADIM_SHAPES_H_
#define ADADIM_SHAPES_H_

#include <cstdint>

namespace adadim {

inline int64_t CeilDiv(int64_t value, int64_t step) { return (value - 1) / step + 1; }  // of a value above 0

struct Matrix {
  int64_t rows, columns;
};

struct Shapes {
  Matrix codes, scales, zero_points;  // of zero points that are not shared; shared ones have one row
};

// R rows of C columns; groups run along C.
inline Shapes ShapesOf(int64_t K, int64_t N, int64_t bits, int64_t group_size, bool per_oc) {
  const int64_t rows = per_oc ? N : K, columns = per_oc ? K : N, groups = CeilDiv(columns, group_size);
  return {{rows, CeilDiv(columns * bits, 8)}, {rows, groups}, {rows, CeilDiv(groups * bits, 8)}};
}

}  // namespace adadim

#endif  // ADADIM_SHAPES_H_
