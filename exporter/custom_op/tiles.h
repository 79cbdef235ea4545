// Layout 1: tiles of 16 output channels, blocks of 32 input channels. One set of kernels serves both axes.
//
// A block of a tile holds 512 codes in `bits` lines of 64 bytes. Output channel n of the tile owns bytes 4n to 4n + 3 of
// each line, so that one register holds 4 input channels for each of up to 16 outputs, as integer dot products want them.
// Byte i of these four, input channels counted from the block's first:
//
//   8 bits  line l, 0 to 7   q[4l + i]
//   4 bits  line l, 0 to 3   q[8l + i] | q[8l + 4 + i] << 4
//   2 bits  line l, 0 to 1   q[16l + i] | q[16l + 4 + i] << 2 | q[16l + 8 + i] << 4 | q[16l + 12 + i] << 6
//   3 bits  line l, 0 to 2   q[8l + i] | q[8l + 4 + i] << 3, and in bits 6 and 7: the low two of q[24 + i] (line 0), those of
//                            q[28 + i] (line 1), the high bits of both (line 2)
//
// The last tile and block are filled up with zeros.
//
// MatMulLevels has codes that are looked up, c[k] for each input channel, packed likewise; or, of pairs, c[j] for input
// channels 2j and 2j + 1, with as many lines as bits for one channel:
//
//   pairs of 4 bits  line l, 0 to 1   c[8l + i] | c[8l + 4 + i] << 4
//   pairs of 6 bits  line l, 0 to 2   c[4l + i] | (c[12 + i] >> 2l & 3) << 6
//
// What is multiplied is a level plus an offset, which takes the place of a zero point. A register of pairs' codes gives first
// the levels of four even input channels, then those of the odd ones between: the activations are prepared in that order.
#ifndef ADADIM_TILES_H_
#define ADADIM_TILES_H_

#include "kernel.h"
#include "shapes.h"

namespace adadim {

constexpr int64_t kChunk = 4 * kBlock;  // activations that are rounded together
constexpr int64_t kPanel = 16;  // rows of activations that are prepared together
constexpr int64_t kContiguousRows = 4;  // up to so many are kept as they are, 2 or 3 with rows of zeros; more are interleaved

// Activations of up to 16 rows, ready to be multiplied: value k of row m lies at m * row_step + k * step (step counts four
// input channels for int8). Rounded ones have a scale for each segment: of row m, segment s, at m * scale_row + s * scale_step.
struct Panel {
  int64_t rows;
  int64_t width;  // 1, 4 or 16: rows of zeros follow
  bool interleaved;  // [K][16] instead of [rows][K]
  float* values;  // as given, filled up to whole chunks
  float* scaled;  // float, PER_IC: times the scales of a group of outputs
  int8_t* rounded;  // int8
  float* scales;
  float* corrections;  // PER_OC: scale * sum of the rounded values, placed as the scales; PER_IC: one for each row
};

// Scales and zero points of one group of outputs, spread over the input channels (PER_IC).
struct Spread {
  int64_t group;
  float* scales;  // null where rounded rows are all kept as they are: they take the scales from the weights
  uint8_t* zeros;
  float* float_zeros;  // float, else null
};

// What codes are looked up in, each entry a level plus `offset`: codes of 3 and 4 bits in `first`; of pairs a code's levels in
// both; of 2 bits two neighbouring codes at once, the lower one's in `first`.
struct LevelTables {
  explicit LevelTables(const Weights& weights);
  alignas(64) uint8_t first[64] = {};
  alignas(64) uint8_t second[64] = {};
  bool small;  // all entries are below 128
  int offset;
};

struct TileWeights {
  Weights weights;
  Geometry geometry;
  const float* shared_zeros;  // float[groups], or null; MatMulLevels: always there
  const LevelTables* tables;  // MatMulLevels, else null
  Precision precision;
  int64_t length;  // of a row of prepared activations: input channels, filled up to whole chunks
};

// A turn's factors are matrices of +1 and -1, each Sylvester's Hadamard matrix, as far as it was taken off, (x) a core: its order
// is a power of two times that of the core.
struct SignedSum {
  float sign;
  int32_t number;  // 8 * g, for the core's columns 4g to 4g + 3, + which of them have the other sign than the first
};

struct LeftFactor {
  int64_t order, core;
  const SignedSum* terms;  // [core][ceil(core / 4)]; null for a core of [[1]]
};

struct RightFactor {
  int64_t order, core;
  // The core's transpose, its rows filled up to whole registers of any processor; null for Sylvester's of so many: the core is
  // kWidest then.
  const float* columns;
};

constexpr int64_t kWidest = 16;  // floats of a register

// With z = signs * x as a matrix [a, b] for a run x, y = left * z * transpose(right).
struct Turn {
  LeftFactor left;
  RightFactor right;
  const float* signs;  // float[K], each divided by sqrt(a * b)
};

// Floats that a run needs: its pieces filled up, then itself, and later the sums of fours.
inline int64_t TurnScratch(const Turn& t) {
  const int64_t size = t.left.order * t.right.order, sums = CeilDiv(t.left.core, 4) * 8 * kWidest;
  const int64_t filled = size / t.right.core * RoundUp(t.right.core, kWidest);
  return filled + RoundUp(size > sums ? size : sums, kWidest);
}

// What one instruction set offers.
struct TileKernels {
  // Fills a group's Spread.
  void (*spread)(const TileWeights& weights, const Spread& spread);
  // Rounds or scales a panel's values; `spread` is null for PER_OC.
  void (*prepare)(const TileWeights& weights, const Spread* spread, const Panel& panel);
  // Half precision to float and back, rounded to the nearest even.
  void (*widen)(const uint16_t* halves, int64_t count, float* floats);
  void (*narrow)(const float* floats, int64_t count, uint16_t* halves);
  // out[rows][16] = the panel times a tile.
  void (*multiply)(const TileWeights& weights, const Spread* spread, const Panel& panel, int64_t tile, float* out);
  // Turns a run from channel `first` on; `scratch` is TurnScratch(turn) floats at a whole cache line.
  void (*turn)(const Turn& turn, int64_t first, const float* x, float* y, float* scratch);
};

const TileKernels& BestTileKernels();  // for the processor that runs this

void MatMulTiles(const Weights& weights, const Product& product, const ParallelFor& parallel_for);

}  // namespace adadim

#endif  // ADADIM_TILES_H_
