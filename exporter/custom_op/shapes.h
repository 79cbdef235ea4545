// The shapes of a node's weights, from its attributes (docs/matmul-adadim.md).
#ifndef ADADIM_SHAPES_H_
#define ADADIM_SHAPES_H_

#include <algorithm>
#include <cstdint>

#include "kernel.h"

namespace adadim {

constexpr int64_t kTile = 16;  // layout 1: output channels of a tile
constexpr int64_t kBlock = 32;  // input channels of a block
constexpr int64_t kLine = 64;  // bytes

inline int64_t CeilDiv(int64_t value, int64_t step) { return (value - 1) / step + 1; }  // of a value above 0
inline int64_t RoundUp(int64_t value, int64_t step) { return CeilDiv(value, step) * step; }

struct Matrix {
  int64_t rows, columns;
};

struct Shapes {
  Matrix codes, scales, zero_points;  // of zero points that are not shared
  int64_t shared_zeros;  // bytes of those that are
};

// Layout 1. Along their axis, group j covers positions j * pitch to j * pitch + group_size.
struct Geometry {
  int64_t group_size, groups, pitch, tiles, blocks;
};

inline Geometry GeometryOf(const Weights& w) {
  const int64_t columns = w.per_oc ? w.K : w.N, group_size = std::min(w.group_size, columns);
  const int64_t groups = CeilDiv(columns, group_size), pitch = RoundUp(group_size, kTile);
  const int64_t last = RoundUp(columns - (groups - 1) * group_size, kTile), length = (groups - 1) * pitch + last;
  return {group_size, groups, pitch, CeilDiv(w.per_oc ? w.N : length, kTile), CeilDiv(w.per_oc ? length : w.K, kBlock)};
}

// In layout 1 zero points of 3 bits ride in 4.
inline int64_t ZeroBits(const Weights& w) { return w.bits == 3 ? 4 : w.bits; }

// Layout 0: R rows of C columns; groups run along C.
inline Shapes StreamShapes(const Weights& w) {
  const int64_t rows = w.per_oc ? w.N : w.K, columns = w.per_oc ? w.K : w.N, groups = CeilDiv(columns, w.group_size);
  const int64_t zero_bytes = CeilDiv(groups * w.bits, 8);
  return {{rows, CeilDiv(columns * w.bits, 8)}, {rows, groups}, {rows, zero_bytes}, zero_bytes};
}

inline Shapes TileShapes(const Weights& w) {
  const Geometry g = GeometryOf(w);
  const Matrix codes = {g.tiles, g.blocks * w.bits * kLine};
  const int64_t shared = CeilDiv(g.groups * w.bits, 8);
  if (w.per_oc) return {codes, {g.tiles, g.groups * kTile}, {g.tiles, CeilDiv(g.groups * ZeroBits(w), 32) * kLine}, shared};
  return {codes, {g.groups, g.blocks * kBlock}, {g.groups, g.blocks * kBlock * ZeroBits(w) / 8}, shared};
}

inline Shapes ShapesOf(const Weights& w) { return w.layout == 0 ? StreamShapes(w) : TileShapes(w); }

}  // namespace adadim

#endif  // ADADIM_SHAPES_H_
