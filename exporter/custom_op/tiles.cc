#include "tiles.h"

#include <algorithm>
#include <functional>

#include "arena.h"

namespace adadim {
namespace {

constexpr int64_t kMostTasks = 32;
constexpr int64_t kTaskProducts = 1 << 18;  // fewer are not worth a thread
constexpr int64_t kPiece = 256;  // halves that are widened at a time

struct Job {
  TileWeights w;
  const Product* product;
  const TileKernels* kernels;
  int64_t width;  // rows that a panel has room for
  int64_t panels;
  int64_t tasks;
  float* values;  // [panels][width * length]
  // Of panels (PER_OC, filled before any tile) or of tasks (PER_IC, filled for each group of outputs and panel):
  float* scaled;
  int8_t* rounded;
  float* scales;
  float* corrections;
  // Of tasks (PER_IC):
  float* spread_scales;
  float* float_zeros;
  uint8_t* zeros;
};

// How many rows a panel of so many has room for.
int64_t Width(int64_t rows) { return rows > kContiguousRows ? kPanel : rows > 1 ? kContiguousRows : 1; }

int64_t Segments(const Job& job) { return job.w.length / (kBlock / 2); }  // at most

// Panel `index`, its computed values in place `slot`.
Panel PanelOf(const Job& job, int64_t index, int64_t slot) {
  const int64_t rows = std::min(kPanel, job.product->rows - index * kPanel), size = job.width * job.w.length;
  const int64_t scales = job.width * Segments(job);
  return {rows,
          Width(rows),
          rows > kContiguousRows,
          job.values + index * size,
          job.scaled + slot * size,
          job.rounded + slot * size,
          job.scales + slot * scales,
          job.corrections + slot * scales};
}

// Where input channel k lies in a row of activations: of pairs in the order in which their levels are looked up (tiles.h).
int64_t Place(bool pairs, int64_t k) { return pairs ? (k & ~7) | (k & 1) << 2 | (k >> 1 & 3) : k; }

void FillPanel(const Job& job, int64_t index) {
  const Panel panel = PanelOf(job, index, index);
  const int64_t K = job.w.weights.K, row = panel.interleaved ? 1 : job.w.length, step = panel.interleaved ? kPanel : 1;
  std::fill_n(panel.values, job.w.length * panel.width, 0.0f);
  const bool pairs = job.w.weights.dims == 2;
  float widened[kPiece];
  for (int64_t m = 0; m < panel.rows; ++m) {
    for (int64_t first = 0; first < K; first += kPiece) {
      const int64_t at = (index * kPanel + m) * K + first, count = std::min(kPiece, K - first);
      const float* a = widened;
      if (job.product->float16) {
        job.kernels->widen(static_cast<const uint16_t*>(job.product->a) + at, count, widened);
      } else {
        a = static_cast<const float*>(job.product->a) + at;
      }
      float* values = panel.values + m * row + first * step;
      for (int64_t k = 0; k < count; ++k) values[Place(pairs, k) * step] = a[k];
    }
  }
}

void PrepareTask(void* data, size_t index) {
  const Job& job = *static_cast<Job*>(data);
  const int64_t panel = static_cast<int64_t>(index);
  FillPanel(job, panel);
  if (job.w.weights.per_oc) job.kernels->prepare(job.w, nullptr, PanelOf(job, panel, panel));
}

void WriteTile(const Job& job, int64_t tile, int64_t panel, float* out) {
  const Product& p = *job.product;
  const int64_t N = job.w.weights.N, first = tile * kTile, count = std::min(kTile, N - first);
  const int64_t rows = std::min(kPanel, p.rows - panel * kPanel);
  for (int64_t m = 0; m < rows; ++m) {
    const int64_t at = (panel * kPanel + m) * N + first;
    float* sums = out + m * kTile;
    if (p.bias != nullptr) std::transform(sums, sums + count, p.bias + first, sums, std::plus<float>());
    if (p.float16) {
      job.kernels->narrow(sums, count, static_cast<uint16_t*>(p.y) + at);
    } else {
      std::copy_n(sums, count, static_cast<float*>(p.y) + at);
    }
  }
}

void TilesPerOc(const Job& job, int64_t begin, int64_t end) {
  alignas(64) float out[kPanel * kTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    for (int64_t panel = 0; panel < job.panels; ++panel) {
      job.kernels->multiply(job.w, nullptr, PanelOf(job, panel, panel), tile, out);
      WriteTile(job, tile, panel, out);
    }
  }
}

void TilesPerIc(const Job& job, int64_t task, int64_t begin, int64_t end) {
  alignas(64) float out[kPanel * kTile];
  const int64_t per_group = job.w.geometry.group_size / kTile;
  const bool int8 = job.w.precision == Precision::kInt8, in_place = int8 && job.width <= kContiguousRows;
  const int64_t own = task * job.w.length;
  for (int64_t first = begin; first < end;) {
    const int64_t group = first / per_group, stop = std::min(end, (group + 1) * per_group);
    const Spread spread{group, in_place ? nullptr : job.spread_scales + own, job.zeros + own,
                        int8 ? nullptr : job.float_zeros + own};
    job.kernels->spread(job.w, spread);
    for (int64_t panel = 0; panel < job.panels; ++panel) {
      const Panel prepared = PanelOf(job, panel, task);
      job.kernels->prepare(job.w, &spread, prepared);
      for (int64_t tile = first; tile < stop; ++tile) {
        job.kernels->multiply(job.w, &spread, prepared, tile, out);
        WriteTile(job, tile, panel, out);
      }
    }
    first = stop;
  }
}

void MultiplyTask(void* data, size_t index) {
  const Job& job = *static_cast<Job*>(data);
  const Geometry& g = job.w.geometry;
  const int64_t task = static_cast<int64_t>(index);
  // Tasks of PER_IC hold whole groups where there are enough: each prepares its groups' activations.
  const int64_t unit = !job.w.weights.per_oc && g.groups >= job.tasks ? g.group_size / kTile : 1, units = CeilDiv(g.tiles, unit);
  const int64_t begin = units * task / job.tasks * unit, end = std::min(units * (task + 1) / job.tasks * unit, g.tiles);
  if (job.w.weights.per_oc) return TilesPerOc(job, begin, end);
  TilesPerIc(job, task, begin, end);
}

// The zero point of each group, where all its rows share it: a stream of bits (PER_OC), or one in each byte.
void ReadSharedZeros(const Weights& w, int64_t groups, float* zeros) {
  const int64_t bits = ZeroBits(w), step = w.per_oc ? bits : 8;
  for (int64_t b = 0; b < groups; ++b) {
    zeros[b] = static_cast<float>(w.zero_points[b * step / 8] >> b * step % 8 & ((1 << bits) - 1));
  }
}

// Gives each array of the job its place.
void Arrange(Arena& arena, Job& job, float** shared_zeros) {
  const bool per_oc = job.w.weights.per_oc, int8 = job.w.precision == Precision::kInt8;
  const int64_t size = job.width * job.w.length, scales = int8 ? job.width * Segments(job) : 0;
  const int64_t slots = per_oc ? job.panels : job.tasks, spread = per_oc ? 0 : job.tasks * job.w.length;
  *shared_zeros = arena.Take<float>(job.w.geometry.groups);
  job.values = arena.Take<float>(job.panels * size);
  job.scaled = arena.Take<float>(int8 || per_oc ? 0 : slots * size);
  job.rounded = arena.Take<int8_t>(int8 ? slots * size : 0);
  job.scales = arena.Take<float>(slots * scales);
  job.corrections = arena.Take<float>(slots * scales);
  job.spread_scales = arena.Take<float>(spread);
  job.float_zeros = arena.Take<float>(int8 ? 0 : spread);
  job.zeros = arena.Take<uint8_t>(spread);
}

}  // namespace

void MatMulTiles(const Weights& weights, const Product& product, const ParallelFor& parallel_for) {
  const Geometry g = GeometryOf(weights);
  const int64_t products = g.tiles * kTile * g.blocks * kBlock * product.rows;
  Job job{};
  job.w = {weights, g, nullptr, nullptr, product.precision, RoundUp(weights.K, kChunk)};
  job.product = &product;
  job.kernels = &BestTileKernels();
  job.panels = CeilDiv(product.rows, kPanel);
  job.width = Width(product.rows);
  job.tasks = std::min({g.tiles, kMostTasks, CeilDiv(products, kTaskProducts)});
  float* shared_zeros = nullptr;
  Arena arena;
  Arrange(arena, job, &shared_zeros);
  arena.Allocate();
  Arrange(arena, job, &shared_zeros);
  const LevelTables tables(weights);
  if (weights.levels != nullptr) {
    std::fill_n(shared_zeros, g.groups, static_cast<float>(tables.offset));
    job.w.tables = &tables;
    job.w.shared_zeros = shared_zeros;
  } else if (weights.shared_zeros) {
    ReadSharedZeros(weights, g.groups, shared_zeros);
    job.w.shared_zeros = shared_zeros;
  }
  parallel_for.run(parallel_for.pool, PrepareTask, &job, static_cast<size_t>(job.panels));
  parallel_for.run(parallel_for.pool, MultiplyTask, &job, static_cast<size_t>(job.tasks));
}

}  // namespace adadim
