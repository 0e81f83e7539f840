// Pointwise and row-wise kernels of a transformer block for CPUs: bfloat16 in memory and float in registers, or float in
// both where it is compiled with AIFT_FLOAT. Nothing in it needs an instruction for bfloat16.
// Matrix products stay with torch (oneDNN, MKL). Every function works on contiguous rows, is deterministic for any number
// of threads, and tests/unit/kernels/test_blocks.py compares it with plain torch.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#ifdef AIFT_FLOAT
typedef float real;

static inline float load(real value) { return value; }
static inline real store(float value) { return value; }
#else
typedef uint16_t real;  // bfloat16

static inline float load(real value) {
  uint32_t bits = static_cast<uint32_t>(value) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// Round to nearest, ties to even; NaN stays NaN because its quiet bit is set first.
static inline real store(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<real>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}
#endif

// exp(x) as 2^n * 2^f with f in [-0.5, 0.5] by its Taylor polynomial, relative error below 3e-7; 0 below -87, and exp(88) above
// 88, as a larger power would not fit into a float's exponent.
static inline float fast_exp(float x) {
  float scaled = std::min(std::max(x, -87.0f), 88.0f) * 1.44269504f;
  float whole = std::floor(scaled + 0.5f);
  float f = scaled - whole;
  float p = 1.540353039e-04f;
  p = p * f + 1.333355815e-03f;
  p = p * f + 9.618129108e-03f;
  p = p * f + 5.550410866e-02f;
  p = p * f + 2.402265070e-01f;
  p = p * f + 6.931471806e-01f;
  p = p * f + 1.000000000e+00f;
  int32_t exponent = (static_cast<int32_t>(whole) + 127) << 23;
  float power;
  std::memcpy(&power, &exponent, 4);
  return x < -87.0f ? 0.0f : p * power;
}

static inline float fast_tanh(float x) {
  float bounded = std::min(std::max(x, -20.0f), 20.0f);
  float e = fast_exp(2.0f * bounded);
  float large = (e - 1.0f) / (e + 1.0f);
#ifdef AIFT_FLOAT
  // Near 0 the difference above loses digits, which bfloat16 does not have: the series of tanh instead.
  float q = std::min(x * x, 0.16f);
  float series = x * (1.0f + q * (-3.333333333e-01f + q * (1.333333333e-01f + q * (-5.396825397e-02f + q * (2.186948854e-02f
                 + q * (-8.863235530e-03f + q * 3.592128037e-03f))))));
  return x * x < 0.16f ? series : large;
#else
  return large;
#endif
}

// Loops without a sum, in all 512 bits of a register where the processor has them: gcc takes 256 by itself, a fifth slower
// (docs/decisions/0195). The bits of sums depend on it, and in float those of GELU in numbers that fill no register.
#if defined(__AVX512F__) && __GNUC__ >= 8 && !defined(__clang__) && !defined(AIFT_FLOAT)
#define WIDE __attribute__((noinline, target("prefer-vector-width=512")))
#else
#define WIDE
#endif

static const int64_t ROWS_PER_BLOCK = 64;

// A head of one token, its first 2 * half features rotated by the angles of cos, sin [half], or back (sign -1).
static inline void rotate(const real* a, real* o, const float* c, const float* s, int64_t d, int64_t half, float sign) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    float first = load(a[i]), second = load(a[i + half]);
    o[i] = store(first * c[i] - sign * second * s[i]);
    o[i + half] = store(second * c[i] + sign * first * s[i]);
  }
  for (int64_t i = 2 * half; i < d; ++i) o[i] = a[i];
}

// Which of `keys` keys the query at a position sees: [begin, last).
struct Seen {
  int64_t begin, last;
  Seen(int64_t position, int64_t window, int64_t keys)
      : begin(window > 0 ? std::max<int64_t>(0, position - window + 1) : 0), last(std::min(position + 1, keys)) {}
};

// softmax_forward of one query; powers [keys] holds exponentials from their sum to their quotient.
static inline void softmax_row(real* s, real* kept, float* powers, int64_t keys, int64_t position, int64_t window, float scale,
                               float cap) {
  const Seen seen(position, window, keys);
  if (cap > 0.0f) {
#pragma omp simd
    for (int64_t i = seen.begin; i < seen.last; ++i) {
      s[i] = store(cap * fast_tanh(load(s[i]) * scale / cap));
      kept[i] = s[i];
    }
  }
  float factor = cap > 0.0f ? 1.0f : scale;
  float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
  for (int64_t i = seen.begin; i < seen.last; ++i) largest = std::max(largest, load(s[i]));
  float shift = largest * factor;
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t i = seen.begin; i < seen.last; ++i) {
    powers[i] = fast_exp(load(s[i]) * factor - shift);
    total += powers[i];
  }
  float inverse = 1.0f / total;
#pragma omp simd
  for (int64_t i = seen.begin; i < seen.last; ++i) s[i] = store(powers[i] * inverse);
  for (int64_t i = 0; i < seen.begin; ++i) s[i] = 0;
  for (int64_t i = seen.last; i < keys; ++i) s[i] = 0;
}

// softmax_backward of one query.
static inline void softmax_row_backward(real* g, const real* p, const real* kept, int64_t keys, int64_t position,
                                        int64_t window, float scale, float cap) {
  const Seen seen(position, window, keys);
  float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = seen.begin; i < seen.last; ++i) dot += load(g[i]) * load(p[i]);
  if (cap > 0.0f) {
#pragma omp simd
    for (int64_t i = seen.begin; i < seen.last; ++i) {
      float share = load(kept[i]) / cap;
      g[i] = store(load(p[i]) * (load(g[i]) - dot) * scale * (1.0f - share * share));
    }
  } else {
#pragma omp simd
    for (int64_t i = seen.begin; i < seen.last; ++i) g[i] = store(load(p[i]) * (load(g[i]) - dot) * scale);
  }
  for (int64_t i = 0; i < seen.begin; ++i) g[i] = 0;
  for (int64_t i = seen.last; i < keys; ++i) g[i] = 0;
}

WIDE static void norm_row(const real* in, const float* w, const float* b, real* out, int64_t d, float mean, float rstd,
                          float offset) {
  if (b) {
#pragma omp simd
    for (int64_t i = 0; i < d; ++i) out[i] = store((load(in[i]) - mean) * rstd * (offset + w[i]) + b[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < d; ++i) out[i] = store((load(in[i]) - mean) * rstd * (offset + w[i]));
  }
}

// norm_backward's dx of one row; dot and total are its two sums over the row.
WIDE static void norm_row_backward(const real* dy, const real* in, const float* w, real* dx, int64_t d, float mean, float rstd,
                                   float offset, float dot, float total) {
#pragma omp simd
  for (int64_t i = 0; i < d; ++i) {
    float scaled = load(dy[i]) * (offset + w[i]);
    dx[i] = store((scaled - total - (load(in[i]) - mean) * dot) * rstd);
  }
}

extern "C" {

// y = (x - mean) * rstd * (offset + w) + b; RMSNorm has no mean and no b. stats: [rows, 2] of mean, rstd.
void norm_forward(const real* x, const float* w, const float* b, real* y, float* stats, int64_t rows, int64_t d,
                  float eps, float offset, int centered) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; ++r) {
    const real* in = x + r * d;
    real* out = y + r * d;
    float mean = 0.0f;
    if (centered) {
      float total = 0.0f;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < d; ++i) total += load(in[i]);
      mean = total / d;
    }
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < d; ++i) {
      float c = load(in[i]) - mean;
      squares += c * c;
    }
    float rstd = 1.0f / std::sqrt(squares / d + eps);
    stats[2 * r] = mean;
    stats[2 * r + 1] = rstd;
    norm_row(in, w, b, out, d, mean, rstd, offset);
  }
}

// dx; and, where dw is not null, dw and db ([d] floats) through partial sums of fixed blocks of rows; and, where y is not null,
// norm_forward's y again.
void norm_backward(const real* dy, const real* x, const float* w, const float* b, const float* stats, real* dx, real* y,
                   float* dw, float* db, int64_t rows, int64_t d, float offset, int centered) {
  int64_t blocks = (rows + ROWS_PER_BLOCK - 1) / ROWS_PER_BLOCK;
  std::vector<float> partial(dw ? static_cast<size_t>(blocks * d * 2) : 0, 0.0f);
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    float* sum_w = dw ? partial.data() + block * d * 2 : nullptr;
    float* sum_b = dw ? sum_w + d : nullptr;
    int64_t last = std::min(rows, (block + 1) * ROWS_PER_BLOCK);
    for (int64_t r = block * ROWS_PER_BLOCK; r < last; ++r) {
      const real *g = dy + r * d, *in = x + r * d;
      float mean = stats[2 * r], rstd = stats[2 * r + 1];
      if (y) norm_row(in, w, b, y + r * d, d, mean, rstd, offset);
      float dot = 0.0f, total = 0.0f;
#pragma omp simd reduction(+ : dot, total)
      for (int64_t i = 0; i < d; ++i) {
        float scaled = load(g[i]) * (offset + w[i]);
        dot += scaled * (load(in[i]) - mean);
        total += scaled;
      }
      dot = dot * rstd * rstd / d;
      total = centered ? total / d : 0.0f;
      if (dx) norm_row_backward(g, in, w, dx + r * d, d, mean, rstd, offset, dot, total);
      if (dw) {
#pragma omp simd
        for (int64_t i = 0; i < d; ++i) {
          float gradient = load(g[i]);
          sum_w[i] += gradient * (load(in[i]) - mean) * rstd;
          sum_b[i] += gradient;
        }
      }
    }
  }
  if (!dw) return;
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t i = 0; i < d; ++i) {
      dw[i] += partial[block * d * 2 + i];
      if (db) db[i] += partial[block * d * 2 + d + i];
    }
}

// Rotates the first 2 * half features of every head and moves [tokens, heads, d] to [heads, tokens, d] of one document
// (to_heads), or back with the opposite rotation (the gradient). cos, sin: [tokens, half]; half 0 only moves.
void rope(const real* in, real* out, const float* cos, const float* sin, int64_t tokens, int64_t heads, int64_t d,
          int64_t half, int64_t token_stride, int to_heads) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const real* a = to_heads ? in + t * token_stride + h * d : in + (h * tokens + t) * d;
      real* o = to_heads ? out + (h * tokens + t) * d : out + t * token_stride + h * d;
      rotate(a, o, cos + t * half, sin + t * half, d, half, to_heads ? 1.0f : -1.0f);
    }
  }
}

// Softmax over the keys that a query sees, in place: scores [matrices, queries, keys] of queries first..first+queries-1 of
// each group of `queries` rows; query q sees keys max(0, q - window + 1)..q (window 0: all before it). With a cap, scores
// become cap * tanh(score / cap) and `capped` receives them for the gradient. Masked places become 0.
void softmax_forward(real* scores, real* capped, int64_t matrices, int64_t queries, int64_t keys, int64_t first,
                     int64_t window, float scale, float cap) {
#pragma omp parallel
  {
    std::vector<float> powers(keys);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < matrices * queries; ++row)
      softmax_row(scores + row * keys, capped + (cap > 0.0f ? row * keys : 0), powers.data(), keys, first + row % queries, window,
                  scale, cap);
  }
}

// Gradient of the scores, in place of the gradient of the probabilities.
void softmax_backward(real* gradient, const real* probabilities, const real* capped, int64_t matrices, int64_t queries,
                      int64_t keys, int64_t first, int64_t window, float scale, float cap) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < matrices * queries; ++row)
    softmax_row_backward(gradient + row * keys, probabilities + row * keys, capped + (cap > 0.0f ? row * keys : 0), keys,
                         first + row % queries, window, scale, cap);
}

}

static const float GELU_A = 0.7978845608f, GELU_B = 0.044715f;

// One loop for each activation: a condition inside would have every row compute both.
template <int act>
WIDE static void gated_rows_forward(const real* gate, const real* up, real* h, int64_t count) {
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    float g = load(gate[i]);
    float a = act == 0 ? g / (1.0f + fast_exp(-g))
                       : 0.5f * g * (1.0f + fast_tanh(GELU_A * (g + GELU_B * g * g * g)));
    h[i] = store(a * load(up[i]));
  }
}

template <int act, bool again>
WIDE static void gated_rows_backward(const real* dh, const real* gate, const real* up, real* dgate, real* dup, real* h,
                                     int64_t count) {
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    float d = load(dh[i]), g = load(gate[i]), u = load(up[i]);
    float a, slope, made;
    if (act == 0) {
      float e = 1.0f + fast_exp(-g), s = 1.0f / e;
      a = g * s;
      slope = s * (1.0f + g * (1.0f - s));
      made = g / e;
    } else {
      float inner = GELU_A * (g + GELU_B * g * g * g);
      float t = fast_tanh(inner);
      a = 0.5f * g * (1.0f + t);
      slope = 0.5f * (1.0f + t) + 0.5f * g * (1.0f - t * t) * GELU_A * (1.0f + 3.0f * GELU_B * g * g);
      made = a;
    }
    dgate[i] = store(d * u * slope);
    dup[i] = store(d * a);
    if (again) h[i] = store(made * u);
  }
}

extern "C" {

// h = act(gate) * up; act 0: SiLU, 1: GELU by tanh. All [count].
void gated_forward(const real* gate, const real* up, real* h, int64_t count, int act) {
  (act == 0 ? gated_rows_forward<0> : gated_rows_forward<1>)(gate, up, h, count);
}

// dgate and dup; and, where h is not null, gated_forward's h again.
void gated_backward(const real* dh, const real* gate, const real* up, real* dgate, real* dup, real* h, int64_t count, int act) {
  auto loop = act == 0 ? (h ? gated_rows_backward<0, true> : gated_rows_backward<0, false>)
                       : (h ? gated_rows_backward<1, true> : gated_rows_backward<1, false>);
  loop(dh, gate, up, dgate, dup, h, count);
}

// Cross entropy of each row of logits [rows, vocabulary], which become their own gradient. cap as in softmax_forward.
void cross_entropy(real* logits, const int64_t* targets, float* losses, int64_t rows, int64_t vocabulary, float cap,
                   int with_gradient) {
#pragma omp parallel
  {
    std::vector<float> powers(vocabulary);  // kept from the sum to the gradient
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      real* z = logits + r * vocabulary;
      float largest = -INFINITY;
      if (cap > 0.0f) {
#pragma omp simd
        for (int64_t i = 0; i < vocabulary; ++i) z[i] = store(cap * fast_tanh(load(z[i]) / cap));
      }
#pragma omp simd reduction(max : largest)
      for (int64_t i = 0; i < vocabulary; ++i) largest = std::max(largest, load(z[i]));
      float total = 0.0f;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < vocabulary; ++i) {
        powers[i] = fast_exp(load(z[i]) - largest);
        total += powers[i];
      }
      float wanted = load(z[targets[r]]);
      losses[r] = std::log(total) + largest - wanted;
      if (!with_gradient) continue;
      float inverse = 1.0f / total;
      float slope = 1.0f - (cap > 0.0f ? (wanted / cap) * (wanted / cap) : 0.0f);
      float at_target = (fast_exp(wanted - largest) * inverse - 1.0f) * slope;
      if (cap > 0.0f) {
#pragma omp simd
        for (int64_t i = 0; i < vocabulary; ++i) {
          float share = load(z[i]) / cap;
          z[i] = store(powers[i] * inverse * (1.0f - share * share));
        }
      } else {
#pragma omp simd
        for (int64_t i = 0; i < vocabulary; ++i) z[i] = store(powers[i] * inverse);
      }
      z[targets[r]] = store(at_target);
    }
  }
}

// Keeps each value with probability 1 - p and divides it by that; a counter-based generator (splitmix64) makes the same
// choice for the same seed and place in the forward and in the backward pass. Adds to `out` where `add` is set.
void dropout(const real* x, real* out, int64_t count, uint64_t seed, float p, int add) {
  float factor = 1.0f / (1.0f - p);
  uint32_t limit = static_cast<uint32_t>(p * 4294967295.0);
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    uint64_t z = seed + static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    uint32_t drawn = static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
    float value = drawn >= limit ? load(x[i]) * factor : 0.0f;
    out[i] = store(add ? load(out[i]) + value : value);
  }
}

#ifdef AIFT_FLOAT
// CBLAS's sgemm with 64-bit sizes (ILP64).
typedef void (*sgemm_t)(int order, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                        const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

// C [m, n] = alpha * op(A) [m, k] op(B) [k, n] + beta * C, rows in memory one after the other, by a library that computes
// in the thread that calls it: the longer side of C is cut among the threads of torch, so that there is one pool of them.
void product(void* sgemm, const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k, int64_t lda,
             int64_t ldb, int64_t ldc, int transposed_a, int transposed_b, float alpha, float beta, int threads) {
  const int64_t STEP = 16;  // columns or rows that a kernel of any library divides well
  sgemm_t call = reinterpret_cast<sgemm_t>(sgemm);
  int64_t side = std::max(m, n), parts = m * n * k < (int64_t(1) << 18) ? 1 : threads;
  int64_t each = ((side + parts - 1) / parts + STEP - 1) / STEP * STEP;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(parts))
  for (int64_t part = 0; part < parts; ++part) {
    int64_t first = std::min(side, part * each), count = std::min(side, first + each) - first;
    if (count <= 0) continue;
    const float *rows = a, *columns = b;
    float* out = c;
    if (m >= n) {
      rows += transposed_a ? first : first * lda;
      out += first * ldc;
    } else {
      columns += transposed_b ? first * ldb : first;
      out += first;
    }
    call(101, transposed_a ? 112 : 111, transposed_b ? 112 : 111, m >= n ? count : m, m >= n ? n : count, k, alpha, rows, lda,
         columns, ldb, beta, out, ldc);
  }
}
#endif
}

// torch's own products in the thread that calls them, by its C interface (torch/csrc/inductor/aoti_torch/c/shim.h): tensors
// over memory that is there, and a product into one of them. Each returns 0 where it succeeds.
struct Torch {
  int32_t (*tensor)(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t dtype,
                    int32_t device_type, int32_t device_index, void** made);
  int32_t (*mm)(void* out, void* a, void* b);
  int32_t (*addmm)(void* out, void* first, void* a, void* b, double beta, double alpha);
  int32_t (*forget)(void* tensor);
  int32_t dtype;
};

// A matrix in memory: its first number, and numbers from one row and from one column to the next.
struct View {
  const real* first;
  int64_t row, column;
};

// C [m, n] = alpha * A [m, k] B [k, n] + beta * C. Whether it failed.
static int32_t multiply(const Torch* torch, View a, View b, View c, int64_t m, int64_t n, int64_t k, float alpha,
                        float beta) {
  const View matrices[3] = {a, b, c};
  const int64_t sizes[3][2] = {{m, k}, {k, n}, {m, n}};
  void* made[3] = {nullptr, nullptr, nullptr};
  int32_t error = 0;
  for (int i = 0; i < 3 && !error; ++i) {
    const int64_t steps[2] = {matrices[i].row, matrices[i].column};
    error = torch->tensor(const_cast<real*>(matrices[i].first), 2, sizes[i], steps, 0, torch->dtype, 0, 0, &made[i]);
  }
  if (!error && beta == 0.0f && alpha == 1.0f)
    error = torch->mm(made[2], made[0], made[1]);
  else if (!error)
    error = torch->addmm(made[2], made[2], made[0], made[1], beta, alpha);
  for (void* tensor : made)
    if (tensor) torch->forget(tensor);
  return error != 0;
}

// The documents of a row, for attention one by one: of each its first row, its tokens, its tokens with the padding that
// gives documents of similar length the same shapes, and where its probabilities begin in what is kept.
struct Document {
  int64_t first, tokens, padded, kept;
};

// Sizes and options of attention as in attention_blocks.py; `queries` of a block.
struct AttentionPlan {
  int64_t heads, kv_heads, d, half, queries, window;
  float scale;
  int64_t group() const { return heads / kv_heads; }
};

// Queries of a document that are computed together, and the keys that they see.
struct Block {
  int64_t start, rows, key, keys, kept;
};

// The blocks of a document; `kept` counts the probabilities of one head of keys.
static std::vector<Block> blocks_of(const Document& document, const AttentionPlan& plan) {
  std::vector<Block> blocks;
  int64_t kept = 0;
  for (int64_t start = 0; start < document.padded; start += plan.queries) {
    int64_t rows = std::min(plan.queries, document.padded - start);
    int64_t key = plan.window > 0 ? std::max<int64_t>(0, start - plan.window + 1) : 0;
    blocks.push_back({start, rows, key, start + rows - key, kept});
    kept += plan.group() * rows * (start + rows - key);
  }
  return blocks;
}

// A head of keys of a document: where its probabilities begin, and its blocks.
struct Task {
  const Document& document;
  int64_t head, kept;
  std::vector<Block> blocks;
  Block whole;
  Task(const Document* documents, int64_t number, const AttentionPlan& plan)
      : document(documents[number / plan.kv_heads]),
        head(number % plan.kv_heads),
        blocks(blocks_of(document, plan)),
        whole({0, document.padded, 0, document.padded, 0}) {
    const Block& last = blocks.back();
    kept = document.kept + head * (last.kept + plan.group() * last.rows * last.keys);
  }
};

// What a thread computes the attention of a block in; documents come longest first.
struct Scratch {
  std::unique_ptr<real[]> p, ds, own, rows, more, keys, values;
  std::unique_ptr<float[]> powers;
  Scratch(const Document& longest, const AttentionPlan& plan, bool kept, bool backward) {
    const int64_t most = plan.group() * std::min(plan.queries, longest.padded);
    if (!kept) p.reset(new real[most * longest.padded]);
    own.reset(new real[most * plan.d]);
    rows.reset(new real[most * plan.d]);
    keys.reset(new real[longest.padded * plan.d]);
    values.reset(new real[longest.padded * plan.d]);
    powers.reset(new float[longest.padded]);
    if (!backward) return;
    ds.reset(new real[most * longest.padded]);
    more.reset(new real[most * plan.d]);
  }
};

// Probabilities [rows, keys] of a block, of its queries `own` [rows, d] and its keys; whether a product failed.
static int32_t attend(const Torch* torch, const real* own, const real* keys, real* p, float* powers, const Block& block,
                      const AttentionPlan& plan) {
  const int64_t rows = plan.group() * block.rows, d = plan.d;
  int32_t failed = multiply(torch, {own, d, 1}, {keys, 1, d}, {p, block.keys, 1}, rows, block.keys, d, 1.0f, 0.0f);
  for (int64_t row = 0; row < rows; ++row)
    softmax_row(p + row * block.keys, nullptr, powers, block.keys, block.start - block.key + row % block.rows, plan.window,
                plan.scale, 0.0f);
  return failed;
}

// Rows that are asked for before they are read: those of one head lie far apart, and no processor guesses the next one.
static const int64_t AHEAD = 8;

static inline void fetch(const real* row, int64_t numbers) {
  for (int64_t byte = 0; byte < numbers * static_cast<int64_t>(sizeof(real)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
}

// Moves a block's rows of the heads that share keys from [tokens, heads * d] to [group, rows, d], rotated; zeros behind the
// document.
static void gather(const real* in, real* out, const float* cos, const float* sin, const Document& document, const Block& block,
                   const AttentionPlan& plan, int64_t heads, int64_t head, int64_t group, int64_t half) {
  const int64_t width = heads * plan.d;
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t t = document.first + block.start + r;
    const bool inside = block.start + r < document.tokens;
    for (int64_t g = 0; g < group; ++g) {
      real* o = out + (g * block.rows + r) * plan.d;
      const real* a = in + t * width + (head * group + g) * plan.d;
      if (block.start + r + AHEAD < document.tokens) fetch(a + AHEAD * width, plan.d);
      if (inside)
        rotate(a, o, cos + t * half, sin + t * half, plan.d, half, 1.0f);
      else
        std::memset(o, 0, plan.d * sizeof(real));
    }
  }
}

// The way back.
static void scatter(const real* in, real* out, const float* cos, const float* sin, const Document& document, const Block& block,
                    const AttentionPlan& plan, int64_t heads, int64_t head, int64_t group, int64_t half) {
  int64_t rows = std::min(block.rows, document.tokens - block.start);
  for (int64_t g = 0; g < group; ++g)
    for (int64_t r = 0; r < rows; ++r) {
      int64_t t = document.first + block.start + r;
      rotate(in + (g * block.rows + r) * plan.d, out + t * heads * plan.d + (head * group + g) * plan.d, cos + t * half,
             sin + t * half, plan.d, half, -1.0f);
    }
}

extern "C" {

// multiply() with C cut into `down` times `across` pieces among the threads of torch; steps: of A, B and C numbers from one row
// and from one column to the next. Returns how many pieces failed.
int32_t product_in_pieces(const Torch* torch, const real* a, const real* b, const real* c, int64_t m, int64_t n, int64_t k,
                          const int64_t* steps, float alpha, float beta, int64_t down, int64_t across) {
  const int64_t STEP = 32;  // rows or columns that a kernel of any library divides well
  int64_t rows_each = ((m + down - 1) / down + STEP - 1) / STEP * STEP;
  int64_t columns_each = ((n + across - 1) / across + STEP - 1) / STEP * STEP;
  int32_t failed = 0;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(down * across)) reduction(+ : failed)
  for (int64_t piece = 0; piece < down * across; ++piece) {
    int64_t row = std::min(m, piece / across * rows_each), column = std::min(n, piece % across * columns_each);
    int64_t rows = std::min(m, row + rows_each) - row, columns = std::min(n, column + columns_each) - column;
    if (rows <= 0 || columns <= 0) continue;
    failed += multiply(torch, {a + row * steps[0], steps[0], steps[1]}, {b + column * steps[3], steps[2], steps[3]},
                       {c + row * steps[4] + column * steps[5], steps[4], steps[5]}, rows, columns, k, alpha, beta);
  }
  return failed;
}

// Attention of documents, each head of keys of each document by one thread. q, out [rows, heads * d], k, v [rows, kv_heads * d];
// probabilities are kept for the gradient where they are not null. Documents come longest first. Returns how many products
// failed.
int32_t attention_forward(const Torch* torch, const real* q, const real* k, const real* v, real* out, real* probabilities,
                          const float* cos, const float* sin, const Document* documents, int64_t count,
                          const AttentionPlan* settings) {
  const AttentionPlan plan = *settings;
  const int64_t d = plan.d, group = plan.group();
  int32_t failed = 0;
#pragma omp parallel reduction(+ : failed)
  {
    Scratch at(documents[0], plan, probabilities, false);
    real *own = at.own.get(), *rows_out = at.rows.get(), *kh = at.keys.get(), *vh = at.values.get();
#pragma omp for schedule(dynamic, 1)
    for (int64_t number = 0; number < count * plan.kv_heads; ++number) {
      const Task task(documents, number, plan);
      const Document& document = task.document;
      const int64_t head = task.head;
      gather(k, kh, cos, sin, document, task.whole, plan, plan.kv_heads, head, 1, plan.half);
      gather(v, vh, cos, sin, document, task.whole, plan, plan.kv_heads, head, 1, 0);
      for (const Block& block : task.blocks) {
        const int64_t rows = group * block.rows, keys = block.keys;
        real* p = probabilities ? probabilities + task.kept + block.kept : at.p.get();
        gather(q, own, cos, sin, document, block, plan, plan.heads, head, group, plan.half);
        failed += attend(torch, own, kh + block.key * d, p, at.powers.get(), block, plan);
        failed += multiply(torch, {p, keys, 1}, {vh + block.key * d, d, 1}, {rows_out, d, 1}, rows, d, keys, 1.0f, 0.0f);
        scatter(rows_out, out, cos, sin, document, block, plan, plan.heads, head, group, 0);
      }
    }
  }
  return failed;
}

// Gradients of q, k and v before rotation, and the output again where it is not null; probabilities that were not kept (null)
// are computed again.
int32_t attention_backward(const Torch* torch, const real* gradient, const real* q, const real* k, const real* v, real* dq,
                           real* dk, real* dv, real* out, const real* probabilities, const float* cos, const float* sin,
                           const Document* documents, int64_t count, const AttentionPlan* settings) {
  const AttentionPlan plan = *settings;
  const int64_t d = plan.d, group = plan.group();
  int32_t failed = 0;
#pragma omp parallel reduction(+ : failed)
  {
    Scratch at(documents[0], plan, probabilities, true);
    real *own = at.own.get(), *g = at.rows.get(), *ds = at.ds.get(), *more = at.more.get();
    real *kh = at.keys.get(), *vh = at.values.get();
#pragma omp for schedule(dynamic, 1)
    for (int64_t number = 0; number < count * plan.kv_heads; ++number) {
      const Task task(documents, number, plan);
      const Document& document = task.document;
      const int64_t head = task.head;
      std::vector<real> dkh(document.padded * d, 0), dvh(document.padded * d, 0);
      gather(k, kh, cos, sin, document, task.whole, plan, plan.kv_heads, head, 1, plan.half);
      gather(v, vh, cos, sin, document, task.whole, plan, plan.kv_heads, head, 1, 0);
      for (const Block& block : task.blocks) {
        const int64_t rows = group * block.rows, keys = block.keys;
        const real *seen = kh + block.key * d, *values = vh + block.key * d;
        const View dkeys = {dkh.data() + block.key * d, d, 1}, dvalues = {dvh.data() + block.key * d, d, 1};
        gather(q, own, cos, sin, document, block, plan, plan.heads, head, group, plan.half);
        gather(gradient, g, cos, sin, document, block, plan, plan.heads, head, group, 0);
        const real* p = probabilities ? probabilities + task.kept + block.kept : at.p.get();
        if (!probabilities) failed += attend(torch, own, seen, at.p.get(), at.powers.get(), block, plan);
        if (out) {
          failed += multiply(torch, {p, keys, 1}, {values, d, 1}, {more, d, 1}, rows, d, keys, 1.0f, 0.0f);
          scatter(more, out, cos, sin, document, block, plan, plan.heads, head, group, 0);
        }
        failed += multiply(torch, {p, 1, keys}, {g, d, 1}, dvalues, keys, d, rows, 1.0f, 1.0f);
        failed += multiply(torch, {g, d, 1}, {values, 1, d}, {ds, keys, 1}, rows, keys, d, 1.0f, 0.0f);
        for (int64_t row = 0; row < rows; ++row)
          softmax_row_backward(ds + row * keys, p + row * keys, nullptr, keys, block.start - block.key + row % block.rows,
                               plan.window, plan.scale, 0.0f);
        failed += multiply(torch, {ds, keys, 1}, {seen, d, 1}, {more, d, 1}, rows, d, keys, 1.0f, 0.0f);
        failed += multiply(torch, {ds, 1, keys}, {own, d, 1}, dkeys, keys, d, rows, 1.0f, 1.0f);
        scatter(more, dq, cos, sin, document, block, plan, plan.heads, head, group, plan.half);
      }
      scatter(dkh.data(), dk, cos, sin, document, task.whole, plan, plan.kv_heads, head, 1, plan.half);
      scatter(dvh.data(), dv, cos, sin, document, task.whole, plan, plan.kv_heads, head, 1, 0);
    }
  }
  return failed;
}
}
