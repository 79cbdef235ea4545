#include "rotate.h"

#include <algorithm>
#include <cmath>

#include "arena.h"
#include "tiles.h"

namespace adadim {
namespace {

constexpr int64_t kMostTasks = 32;
constexpr int64_t kTaskValues = 1 << 14;  // fewer are not worth a thread

// Whether the first rows and columns of `matrix`, an even number of them, are [[H, H], [H, -H]].
bool IsDoubled(Square matrix, int64_t order) {
  const int64_t half = order / 2;
  for (int64_t row = 0; row < half; ++row) {
    const int8_t *upper = matrix.entries + row * matrix.order, *lower = upper + half * matrix.order;
    for (int64_t i = 0; i < half; ++i) {
      if (upper[half + i] != upper[i] || lower[i] != upper[i] || lower[half + i] != -upper[i]) return false;
    }
  }
  return true;
}

// The order of what is left when doublings are taken off, no smaller than `least`.
int64_t Core(Square matrix, int64_t least) {
  int64_t core = matrix.order;
  while (core % 2 == 0 && core / 2 >= least && IsDoubled(matrix, core)) core /= 2;
  return core;
}

LeftFactor MakeLeft(Square matrix, std::vector<SignedSum>* terms) {
  const int64_t core = Core(matrix, 1);
  if (core == 1 && matrix.entries[0] == 1) return {matrix.order, core, nullptr};
  for (int64_t row = 0; row < core; ++row) {
    const int8_t* entries = matrix.entries + row * matrix.order;
    for (int64_t four = 0; 4 * four < core; ++four) {
      SignedSum term{static_cast<float>(entries[4 * four]), static_cast<int32_t>(8 * four)};
      for (int64_t i = 4 * four + 1; i < std::min(4 * four + 4, core); ++i) {
        if (entries[i] != entries[4 * four]) term.number |= 1 << (i % 4 - 1);
      }
      terms->push_back(term);
    }
  }
  return {matrix.order, core, terms->data()};
}

// The core keeps a whole register of the widest kind, or what is nearest above half of one.
RightFactor MakeRight(Square matrix, std::vector<float>* columns) {
  if (matrix.order >= kWidest && Core(matrix, 1) == 1 && matrix.entries[0] == 1) return {matrix.order, kWidest, nullptr};
  const int64_t core = Core(matrix, kWidest / 2 + 1), width = RoundUp(core, kWidest);
  columns->assign(static_cast<size_t>(core * width), 0);
  for (int64_t row = 0; row < core; ++row) {
    for (int64_t i = 0; i < core; ++i) (*columns)[static_cast<size_t>(i * width + row)] = matrix.entries[row * matrix.order + i];
  }
  return {matrix.order, core, columns->data()};
}

struct Job {
  const Rotation* rotation;
  const Rows* rows;
  const TileKernels* kernels;
  int64_t size;  // channels of a run
  int64_t tasks;
  int64_t room, scratch;  // floats of a task: for halves, and for the kernel
  float* floats;
  float* scratches;
};

void TurnOne(const Job& job, int64_t run, float* floats, float* scratch) {
  const Rows& rows = *job.rows;
  const Turn& turn = job.rotation->turn();
  const int64_t at = run * job.size, first = at % job.rotation->channels;
  if (!rows.float16) {
    return job.kernels->turn(turn, first, static_cast<const float*>(rows.x) + at, static_cast<float*>(rows.y) + at, scratch);
  }
  job.kernels->widen(static_cast<const uint16_t*>(rows.x) + at, job.size, floats);
  job.kernels->turn(turn, first, floats, floats, scratch);
  job.kernels->narrow(floats, job.size, static_cast<uint16_t*>(rows.y) + at);
}

void TurnTask(void* data, size_t index) {
  const Job& job = *static_cast<Job*>(data);
  const int64_t task = static_cast<int64_t>(index), runs = job.rows->count * (job.rotation->channels / job.size);
  float* const scratch = job.scratches + task * job.scratch;
  for (int64_t run = runs * task / job.tasks; run < runs * (task + 1) / job.tasks; ++run) {
    TurnOne(job, run, job.floats + task * job.room, scratch);
  }
}

// Gives each array of the job its place.
void Arrange(Arena& arena, Job& job) {
  job.floats = arena.Take<float>(job.tasks * job.room);
  job.scratches = arena.Take<float>(job.tasks * job.scratch);
}

}  // namespace

Rotation::Rotation(const int8_t* signs, int64_t K, Square left, Square right) : channels(K), signs_(static_cast<size_t>(K)) {
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(left.order * right.order)));
  std::transform(signs, signs + K, signs_.begin(), [scale](int8_t sign) { return sign < 0 ? -scale : scale; });
  if (right.order == 1 && right.entries[0] == 1) std::swap(left, right);  // the same product, in fuller registers
  turn_ = {MakeLeft(left, &left_), MakeRight(right, &right_), signs_.data()};
}

void Rotate(const Rotation& rotation, const Rows& rows, const ParallelFor& parallel_for) {
  const Turn& turn = rotation.turn();
  const int64_t size = turn.left.order * turn.right.order, values = rows.count * rotation.channels;
  const int64_t tasks = std::min({values / size, kMostTasks, CeilDiv(values, kTaskValues)});
  Job job{&rotation, &rows, &BestTileKernels(), size, tasks, rows.float16 ? RoundUp(size, kWidest) : 0,
          RoundUp(TurnScratch(turn), kWidest), nullptr, nullptr};
  Arena arena;
  Arrange(arena, job);
  arena.Allocate();
  Arrange(arena, job);
  parallel_for.run(parallel_for.pool, TurnTask, &job, static_cast<size_t>(tasks));
}

}  // namespace adadim
