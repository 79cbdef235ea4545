// The shapes of a node's weights, from its attributes (docs/reference/matmul-adadim.md).
#ifndef ADADIM_SHAPES_H_
#define ADADIM_SHAPES_H_

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
  Matrix codes, scales, zero_points;
  Matrix shared_zeros;  // zero points that do not vary within a group's rows
};

// Layout 1, for group sizes that are multiples of 16; one group of any size counts as whole tiles and blocks.
struct Geometry {
  int64_t groups, group_size, tiles, blocks;
};

inline Geometry GeometryOf(const Weights& w) {
  const int64_t columns = w.per_oc ? w.K : w.N, groups = CeilDiv(columns, w.group_size);
  return {groups, groups == 1 ? RoundUp(columns, kBlock) : w.group_size, CeilDiv(w.N, kTile), CeilDiv(w.K, kBlock)};
}

// Of 64 bytes, in a block of layout 1.
inline int64_t Lines(const Weights& w) { return w.bits / w.dims; }

// In layout 1 zero points of 3 bits ride in 4.
inline int64_t ZeroBits(const Weights& w) { return w.bits == 3 ? 4 : w.bits; }

// Layout 0: R rows of C columns; groups run along C.
inline Shapes StreamShapes(const Weights& w) {
  const int64_t rows = w.per_oc ? w.N : w.K, columns = w.per_oc ? w.K : w.N, groups = CeilDiv(columns, w.group_size);
  const int64_t zero_bytes = CeilDiv(groups * w.bits, 8);
  return {{rows, CeilDiv(columns * w.bits, 8)}, {rows, groups}, {rows, zero_bytes}, {1, zero_bytes}};
}

inline Shapes TileShapes(const Weights& w) {
  const Geometry g = GeometryOf(w);
  const Matrix codes = {g.tiles, g.blocks * Lines(w) * kLine};
  if (w.per_oc) {
    const int64_t words = CeilDiv(g.groups * ZeroBits(w), 32);
    return {codes, {g.tiles, g.groups * kTile}, {g.tiles, words * kLine}, {1, words * kLine / kTile}};
  }
  const int64_t length = g.blocks * kBlock;
  return {codes, {g.groups, length}, {g.groups, length * ZeroBits(w) / 8}, {g.groups, 1}};
}

inline Shapes ShapesOf(const Weights& w) { return w.layout == 0 ? StreamShapes(w) : TileShapes(w); }

}  // namespace adadim

#endif  // ADADIM_SHAPES_H_
