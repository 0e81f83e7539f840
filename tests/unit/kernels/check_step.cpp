// A whole training step by kernels/cpu.cpp, as a program: a Llama block with adapters, packed documents, head and loss,
// forward and backward, with the calls of kernels/blocks.py and kernels/loss.py. For processors that run here in an
// emulator only; tests/unit/kernels/test_other_processors.py compiles it. It prints the largest relative distance and its
// name: of the loss to the same formulas in double, and of every gradient to their slope along random directions.
#include <map>

#include "check.h"

static const int64_t WIDTH = 64, HEADS = 4, KV_HEADS = 2, HEAD = 16, HALF = 8, INNER = 96, WORDS = 203, RANK = 4;
static const std::vector<int64_t> LENGTHS = {17, 1, 23};
static const int64_t TOKENS = 41;
static const double EPS = 1e-5, LORA_SCALE = 2.0, SCORE_SCALE = 0.25;

struct Linear {
  const char* name;
  int64_t inputs, outputs;
};
static const Linear LINEARS[] = {{"q", WIDTH, HEADS * HEAD},    {"k", WIDTH, KV_HEADS * HEAD}, {"v", WIDTH, KV_HEADS * HEAD},
                                 {"o", HEADS * HEAD, WIDTH},    {"gate", WIDTH, INNER},        {"up", WIDTH, INNER},
                                 {"down", INNER, WIDTH}};
typedef std::map<std::string, numbers> Weights;  // and the input `x`
static const Linear& linear_of(const std::string& name) {
  for (const Linear& one : LINEARS)
    if (name == one.name) return one;
  std::abort();
}
static std::vector<int64_t> labelled() {  // a document's last token predicts nothing
  std::vector<int64_t> rows;
  int64_t start = 0;
  for (int64_t length : LENGTHS) {
    for (int64_t i = 2; i + 1 < length; ++i) rows.push_back(start + i);
    start += length;
  }
  return rows;
}
static int64_t target_of(int64_t row) { return (row * 37 + 5) % WORDS; }
static double angle(int64_t place, int64_t i) { return place * std::pow(100.0, -double(i) / HALF); }

// ---- The formulas in double, one token after the other.

static numbers norm(const numbers& x, const numbers& w) {
  numbers y(x.size());
  for (size_t start = 0; start < x.size(); start += w.size()) {
    double square = 0;
    for (size_t i = 0; i < w.size(); ++i) square += x[start + i] * x[start + i] / w.size();
    for (size_t i = 0; i < w.size(); ++i) y[start + i] = x[start + i] * w[i] / std::sqrt(square + EPS);
  }
  return y;
}
static numbers times(const numbers& x, const numbers& w, int64_t inputs, int64_t outputs) {  // x w^T
  numbers y(x.size() / inputs * outputs, 0.0);
  for (size_t row = 0; row < x.size() / inputs; ++row)
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t i = 0; i < inputs; ++i) y[row * outputs + o] += x[row * inputs + i] * w[o * inputs + i];
  return y;
}
static numbers linear(const Weights& weights, const char* name, const numbers& x) {
  const Linear& shape = linear_of(name);
  std::string n = name;
  numbers y = times(x, weights.at(n), shape.inputs, shape.outputs);
  numbers low = times(times(x, weights.at(n + ".A"), shape.inputs, RANK), weights.at(n + ".B"), RANK, shape.outputs);
  for (size_t i = 0; i < y.size(); ++i) y[i] += LORA_SCALE * low[i];
  return y;
}
static void turn(numbers& x, int64_t heads) {
  int64_t token = 0;
  for (int64_t length : LENGTHS)
    for (int64_t place = 0; place < length; ++place, ++token)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < HALF; ++i) {
          double *a = &x[(token * heads + h) * HEAD + i], *b = a + HALF;
          double c = std::cos(angle(place, i)), s = std::sin(angle(place, i)), first = *a, second = *b;
          *a = first * c - second * s, *b = second * c + first * s;
        }
}
static double loss_of(const Weights& weights) {
  numbers x = weights.at("x"), n = norm(x, weights.at("norm 1"));
  numbers q = linear(weights, "q", n), k = linear(weights, "k", n), v = linear(weights, "v", n), mixed(q.size(), 0.0);
  turn(q, HEADS), turn(k, KV_HEADS);
  int64_t start = 0;
  for (int64_t length : LENGTHS) {
    for (int64_t t = start; t < start + length; ++t)
      for (int64_t h = 0; h < HEADS; ++h) {
        int64_t kv = h / (HEADS / KV_HEADS);
        numbers p;
        double total = 0;
        for (int64_t s = start; s <= t; ++s) {
          double score = 0;
          for (int64_t i = 0; i < HEAD; ++i) score += q[(t * HEADS + h) * HEAD + i] * k[(s * KV_HEADS + kv) * HEAD + i];
          p.push_back(std::exp(score * SCORE_SCALE)), total += p.back();
        }
        for (int64_t s = start; s <= t; ++s)
          for (int64_t i = 0; i < HEAD; ++i)
            mixed[(t * HEADS + h) * HEAD + i] += p[s - start] / total * v[(s * KV_HEADS + kv) * HEAD + i];
      }
    start += length;
  }
  numbers o = linear(weights, "o", mixed);
  for (size_t i = 0; i < x.size(); ++i) x[i] += o[i];
  n = norm(x, weights.at("norm 2"));
  numbers gate = linear(weights, "gate", n), up = linear(weights, "up", n);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
  numbers down = linear(weights, "down", gate);
  for (size_t i = 0; i < x.size(); ++i) x[i] += down[i];
  numbers logits = times(norm(x, weights.at("norm 3")), weights.at("head"), WIDTH, WORDS);
  double sum = 0;
  for (int64_t row : labelled()) {
    double total = 0;
    for (int64_t i = 0; i < WORDS; ++i) total += std::exp(logits[row * WORDS + i]);
    sum += std::log(total) - logits[row * WORDS + target_of(row)];
  }
  return sum;
}

// ---- The same step by the kernels.

typedef std::vector<real> Matrix;
typedef std::map<std::string, std::vector<float>> Gradients;

#ifdef AIFT_FLOAT
// A library's product in the place of OpenBLAS's.
static void plain_sgemm(int, int across_a, int across_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                        int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (int64_t l = 0; l < k; ++l)
        sum += (across_a == 112 ? a[l * lda + i] : a[i * lda + l]) * (across_b == 112 ? b[j * ldb + l] : b[l * ldb + j]);
      c[i * ldc + j] = alpha * sum + (beta == 0.0f ? 0.0f : beta * c[i * ldc + j]);
    }
}
#endif
// C [m, n] = alpha op(A) op(B), or added to C.
static void multiply(const real* a, bool across_a, const real* b, bool across_b, real* c, int64_t m, int64_t n, int64_t k,
                     float alpha = 1.0f, bool add = false) {
  int64_t lda = across_a ? m : k, ldb = across_b ? k : n;
#ifdef AIFT_FLOAT
  product(reinterpret_cast<void*>(&plain_sgemm), a, b, c, m, n, k, lda, ldb, n, across_a, across_b, alpha,
          add ? 1.0f : 0.0f, 3);
#else
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (int64_t l = 0; l < k; ++l)
        sum += load(across_a ? a[l * lda + i] : a[i * lda + l]) * load(across_b ? b[j * ldb + l] : b[l * ldb + j]);
      c[i * n + j] = store(alpha * sum + (add ? load(c[i * n + j]) : 0.0f));
    }
#endif
}

struct Step {
  std::map<std::string, Matrix> weights;  // in the kernels' type
  std::map<std::string, std::vector<float>> scales;  // of norms
  std::map<std::string, Matrix> low;  // x A^T of every linear layer
  Gradients gradients;
  std::vector<float> cosine, sine;

  explicit Step(const Weights& given) {
    for (const auto& [name, values] : given) weights[name] = narrow(values), scales[name] = floats(values);
    for (int64_t length : LENGTHS)
      for (int64_t place = 0; place < length; ++place)
        for (int64_t i = 0; i < HALF; ++i) {
          cosine.push_back(std::cos(angle(place, i)));
          sine.push_back(std::sin(angle(place, i)));
        }
  }
  const real* at(const std::string& name) { return weights.at(name).data(); }
  void keep(const std::string& name, const Matrix& gradient) {
    for (real value : gradient) gradients[name].push_back(load(value));
  }

  Matrix forward(const char* name, const Matrix& x, const Matrix* residual = nullptr) {
    const Linear& shape = linear_of(name);
    std::string n = name;
    int64_t rows = x.size() / shape.inputs;
    Matrix y = residual ? *residual : Matrix(rows * shape.outputs), hidden(rows * RANK);
    multiply(x.data(), false, at(n), true, y.data(), rows, shape.outputs, shape.inputs, 1.0f, residual != nullptr);
    multiply(x.data(), false, at(n + ".A"), true, hidden.data(), rows, RANK, shape.inputs);
    multiply(hidden.data(), false, at(n + ".B"), true, y.data(), rows, shape.outputs, RANK, LORA_SCALE, true);
    low[n] = hidden;
    return y;
  }
  // Adds to dx; the weight's own gradient as full fine-tuning has it, and the adapter's.
  void backward(const char* name, const Matrix& dy, const Matrix& x, Matrix& dx) {
    const Linear& shape = linear_of(name);
    std::string n = name;
    int64_t rows = x.size() / shape.inputs;
    Matrix dw(shape.outputs * shape.inputs), da(RANK * shape.inputs), db(shape.outputs * RANK), dlow(rows * RANK);
    multiply(dy.data(), false, at(n), false, dx.data(), rows, shape.inputs, shape.outputs, 1.0f, true);
    multiply(dy.data(), true, x.data(), false, dw.data(), shape.outputs, shape.inputs, rows);
    multiply(dy.data(), false, at(n + ".B"), false, dlow.data(), rows, RANK, shape.outputs, LORA_SCALE);
    multiply(dy.data(), true, low.at(n).data(), false, db.data(), shape.outputs, RANK, rows, LORA_SCALE);
    multiply(dlow.data(), true, x.data(), false, da.data(), RANK, shape.inputs, rows);
    multiply(dlow.data(), false, at(n + ".A"), false, dx.data(), rows, shape.inputs, RANK, 1.0f, true);
    keep(n, dw), keep(n + ".A", da), keep(n + ".B", db);
  }
  Matrix norm_of(const char* name, const Matrix& x, std::vector<float>& stats) {
    Matrix y(x.size());
    stats.resize(2 * TOKENS);
    norm_forward(x.data(), scales.at(name).data(), nullptr, y.data(), stats.data(), TOKENS, WIDTH, EPS, 0.0f, 0);
    return y;
  }
  Matrix norm_back(const char* name, const Matrix& dy, const Matrix& x, const std::vector<float>& stats) {
    Matrix dx(x.size());
    gradients[name].assign(WIDTH, 0.0f);
    norm_backward(dy.data(), x.data(), scales.at(name).data(), nullptr, stats.data(), dx.data(), nullptr,
                  gradients[name].data(), nullptr, TOKENS, WIDTH, 0.0f, 0);
    return dx;
  }
  Matrix heads_of(const Matrix& x, int64_t heads, int64_t start, int64_t length, bool turned) {
    Matrix out(heads * length * HEAD);
    rope(x.data() + start * heads * HEAD, out.data(), &cosine[start * HALF], &sine[start * HALF], length, heads, HEAD,
         turned ? HALF : 0, heads * HEAD, 1);
    return out;
  }
  void heads_back(const Matrix& x, Matrix& out, int64_t heads, int64_t start, int64_t length, bool turned) {
    rope(x.data(), out.data() + start * heads * HEAD, &cosine[start * HALF], &sine[start * HALF], length, heads, HEAD,
         turned ? HALF : 0, heads * HEAD, 0);
  }

  double run() {
    const int64_t group = HEADS / KV_HEADS;
    std::vector<float> stats1, stats2, stats3;
    Matrix x = weights.at("x"), n1 = norm_of("norm 1", x, stats1);
    Matrix q = forward("q", n1), k = forward("k", n1), v = forward("v", n1), mixed(q.size());
    std::vector<Matrix> qs, ks, vs, ps;
    int64_t start = 0;
    for (int64_t length : LENGTHS) {
      qs.push_back(heads_of(q, HEADS, start, length, true)), ks.push_back(heads_of(k, KV_HEADS, start, length, true));
      vs.push_back(heads_of(v, KV_HEADS, start, length, false)), ps.push_back(Matrix(HEADS * length * length));
      Matrix result(HEADS * length * HEAD);
      for (int64_t h = 0; h < KV_HEADS; ++h)
        multiply(&qs.back()[h * group * length * HEAD], false, &ks.back()[h * length * HEAD], true,
                 &ps.back()[h * group * length * length], group * length, length, HEAD);
      softmax_forward(ps.back().data(), nullptr, HEADS, length, length, 0, 0, SCORE_SCALE, 0.0f);
      for (int64_t h = 0; h < KV_HEADS; ++h)
        multiply(&ps.back()[h * group * length * length], false, &vs.back()[h * length * HEAD], false,
                 &result[h * group * length * HEAD], group * length, HEAD, length);
      heads_back(result, mixed, HEADS, start, length, false);
      start += length;
    }
    Matrix x1 = forward("o", mixed, &x), n2 = norm_of("norm 2", x1, stats2);
    Matrix gate = forward("gate", n2), up = forward("up", n2), h(gate.size());
    gated_forward(gate.data(), up.data(), h.data(), gate.size(), 0);
    Matrix x2 = forward("down", h, &x1), n3 = norm_of("norm 3", x2, stats3);

    std::vector<int64_t> rows = labelled(), targets;
    Matrix taken, dtaken(rows.size() * WIDTH), logits(rows.size() * WORDS), dhead(WORDS * WIDTH), dn3(n3.size());
    for (int64_t row : rows) {
      targets.push_back(target_of(row));
      taken.insert(taken.end(), n3.begin() + row * WIDTH, n3.begin() + (row + 1) * WIDTH);
    }
    std::vector<float> losses(rows.size());
    multiply(taken.data(), false, at("head"), true, logits.data(), rows.size(), WORDS, WIDTH);
    cross_entropy(logits.data(), targets.data(), losses.data(), rows.size(), WORDS, 0.0f, 1);
    multiply(logits.data(), false, at("head"), false, dtaken.data(), rows.size(), WIDTH, WORDS);
    multiply(logits.data(), true, taken.data(), false, dhead.data(), WORDS, WIDTH, rows.size());
    keep("head", dhead);
    for (size_t i = 0; i < rows.size(); ++i) std::copy_n(&dtaken[i * WIDTH], WIDTH, &dn3[rows[i] * WIDTH]);

    Matrix dx2 = norm_back("norm 3", dn3, x2, stats3), dh(h.size()), dgate(h.size()), dup(h.size()), dn2(n2.size());
    backward("down", dx2, h, dh);
    gated_backward(dh.data(), gate.data(), up.data(), dgate.data(), dup.data(), nullptr, h.size(), 0);
    backward("gate", dgate, n2, dn2), backward("up", dup, n2, dn2);
    Matrix dx1 = norm_back("norm 2", dn2, x1, stats2), dmixed(mixed.size());
    for (size_t i = 0; i < dx1.size(); ++i) dx1[i] = store(load(dx1[i]) + load(dx2[i]));
    backward("o", dx1, mixed, dmixed);
    Matrix dq(q.size()), dk(k.size()), dv(v.size()), dn1(n1.size());
    start = 0;
    for (size_t d = 0; d < LENGTHS.size(); ++d) {
      int64_t length = LENGTHS[d];
      Matrix g = heads_of(dmixed, HEADS, start, length, false), ds(ps[d].size());
      Matrix dqh(qs[d].size()), dkh(ks[d].size()), dvh(vs[d].size());
      for (int64_t h = 0; h < KV_HEADS; ++h) {
        int64_t wide = h * group * length * HEAD, square = h * group * length * length, one = h * length * HEAD;
        multiply(&ps[d][square], true, &g[wide], false, &dvh[one], length, HEAD, group * length);
        multiply(&g[wide], false, &vs[d][one], true, &ds[square], group * length, length, HEAD);
      }
      softmax_backward(ds.data(), ps[d].data(), nullptr, HEADS, length, length, 0, 0, SCORE_SCALE, 0.0f);
      for (int64_t h = 0; h < KV_HEADS; ++h) {
        int64_t wide = h * group * length * HEAD, square = h * group * length * length, one = h * length * HEAD;
        multiply(&ds[square], false, &ks[d][one], false, &dqh[wide], group * length, HEAD, length);
        multiply(&ds[square], true, &qs[d][wide], false, &dkh[one], length, HEAD, group * length);
      }
      heads_back(dqh, dq, HEADS, start, length, true), heads_back(dkh, dk, KV_HEADS, start, length, true);
      heads_back(dvh, dv, KV_HEADS, start, length, false);
      start += length;
    }
    backward("q", dq, n1, dn1), backward("k", dk, n1, dn1), backward("v", dv, n1, dn1);
    Matrix dx = norm_back("norm 1", dn1, x, stats1);
    for (size_t i = 0; i < dx.size(); ++i) dx[i] = store(load(dx[i]) + load(dx1[i]));
    keep("x", dx);
    double sum = 0;
    for (float one : losses) sum += one;
    return sum;
  }
};

int main() {
  Weights weights;
  weights["x"] = drawn(TOKENS * WIDTH);
  for (const char* name : {"norm 1", "norm 2", "norm 3"}) {
    weights[name] = drawn(WIDTH, 0.25);
    for (double& value : weights[name]) value = load(store(static_cast<float>(1.0 + value)));
  }
  for (const Linear& one : LINEARS) {
    std::string name = one.name;
    weights[name] = drawn(one.outputs * one.inputs, 1.5 / std::sqrt(double(one.inputs)));
    weights[name + ".A"] = drawn(RANK * one.inputs, 1.0 / std::sqrt(double(one.inputs)));
    weights[name + ".B"] = drawn(one.outputs * RANK, 0.2);
  }
  weights["head"] = drawn(WORDS * WIDTH, 0.3);
  Step step(weights);
  double obtained = step.run(), expected = loss_of(weights);
  note(std::abs(obtained - expected) / expected, "loss");
  for (const auto& [name, gradient] : step.gradients) {
    double size = 0;
    for (float value : gradient) size += double(value) * value;
    for (int direction = 0; direction < 3; ++direction) {
      numbers along = drawn(gradient.size());
      double slope = 0, length = 1e-4;
      Weights before = weights, behind = weights;
      for (size_t i = 0; i < along.size(); ++i) {
        slope += along[i] * gradient[i];
        before[name][i] -= length * along[i], behind[name][i] += length * along[i];
      }
      double exact = (loss_of(behind) - loss_of(before)) / (2 * length);
      note(std::abs(slope - exact) / std::sqrt(size), "gradient of " + name);
    }
  }
  if (step.gradients.size() != 7 * 3 + 3 + 2) note(INFINITY, "number of gradients");
  std::printf("%.3g %s\n", worst, name_of_worst.c_str());
  return 0;
}
