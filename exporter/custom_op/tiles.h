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

struct TileWeights {
  Weights weights;
  Geometry geometry;
  const float* shared_zeros;  // float[groups], or null
  Precision precision;
  int64_t length;  // of a row of prepared activations: input channels, filled up to whole chunks
};

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
};

const TileKernels& BestTileKernels();  // for the processor that runs this

void MatMulTiles(const Weights& weights, const Product& product, const ParallelFor& parallel_for);

}  // namespace adadim

#endif  // ADADIM_TILES_H_
