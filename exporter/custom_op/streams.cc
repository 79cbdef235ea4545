#include "streams.h"

#include <algorithm>
#include <vector>

#include "half.h"
#include "shapes.h"

namespace adadim {
namespace {

constexpr int64_t kChunk = 256;  // weights decoded at a time, on the stack
constexpr int64_t kColumns = 64;  // output channels of a task

struct Job {
  const Weights* weights;
  int64_t rows;
  const float* a;
  const float* bias;
  float* y;
};

// Value i of a packed row; at 3 bits it may straddle two bytes.
int Value(const uint8_t* row, int64_t bits, int64_t i) {
  const int64_t first = i * bits, byte = first / 8, shift = first % 8;
  int pair = row[byte];
  if (shift + bits > 8) pair |= row[byte + 1] << 8;
  return pair >> shift & ((1 << bits) - 1);
}

// W of `count` columns from `column` on in a stored row: an output channel (per_oc) or an input channel.
void DecodeRow(const Weights& w, int64_t row, int64_t column, int64_t count, float* out) {
  const int64_t columns = w.per_oc ? w.K : w.N, groups = CeilDiv(columns, w.group_size);
  const uint8_t* codes = w.codes + row * CeilDiv(columns * w.bits, 8);
  const uint8_t* zeros = w.zero_points + (w.shared_zeros ? 0 : row * CeilDiv(groups * w.bits, 8));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t group = (column + i) / w.group_size, at = row * groups + group;
    const float scale = w.float16_scales ? HalfToFloat(static_cast<const uint16_t*>(w.scales)[at])
                                         : static_cast<const float*>(w.scales)[at];
    out[i] = static_cast<float>(Value(codes, w.bits, column + i) - Value(zeros, w.bits, group)) * scale;
  }
}

void ColumnsPerOc(const Weights& w, const Job& job, int64_t begin, int64_t end) {
  float decoded[kChunk];
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t k = 0; k < w.K; k += kChunk) {
      const int64_t count = std::min(kChunk, w.K - k);
      DecodeRow(w, n, k, count, decoded);
      for (int64_t m = 0; m < job.rows; ++m) {
        const float* a = job.a + m * w.K + k;
        float sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += a[i] * decoded[i];
        job.y[m * w.N + n] += sum;
      }
    }
  }
}

void ColumnsPerIc(const Weights& w, const Job& job, int64_t begin, int64_t end) {
  float decoded[kColumns];
  for (int64_t k = 0; k < w.K; ++k) {
    DecodeRow(w, k, begin, end - begin, decoded);
    for (int64_t m = 0; m < job.rows; ++m) {
      const float a = job.a[m * w.K + k];
      float* y = job.y + m * w.N;
      for (int64_t n = begin; n < end; ++n) y[n] += a * decoded[n - begin];
    }
  }
}

void Task(void* data, size_t index) {
  const Job& job = *static_cast<Job*>(data);
  const Weights& w = *job.weights;
  const int64_t begin = static_cast<int64_t>(index) * kColumns, end = std::min(begin + kColumns, w.N);
  for (int64_t m = 0; m < job.rows; ++m) {
    for (int64_t n = begin; n < end; ++n) job.y[m * w.N + n] = job.bias == nullptr ? 0 : job.bias[n];
  }
  (w.per_oc ? ColumnsPerOc : ColumnsPerIc)(w, job, begin, end);
}

}  // namespace

void MatMulStreams(const Weights& weights, const Product& product, const ParallelFor& parallel_for) {
  Job job{&weights, product.rows, static_cast<const float*>(product.a), product.bias, static_cast<float*>(product.y)};
  std::vector<float> a, y;
  if (product.float16) {
    const uint16_t* halves = static_cast<const uint16_t*>(product.a);
    a.resize(static_cast<size_t>(product.rows * weights.K));
    y.resize(static_cast<size_t>(product.rows * weights.N));
    std::transform(halves, halves + a.size(), a.begin(), HalfToFloat);
    job.a = a.data();
    job.y = y.data();
  }
  parallel_for.run(parallel_for.pool, Task, &job, static_cast<size_t>(CeilDiv(weights.N, kColumns)));
  if (product.float16) std::transform(y.begin(), y.end(), static_cast<uint16_t*>(product.y), FloatToHalf);
}

}  // namespace adadim
