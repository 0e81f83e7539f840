// kernels/cpu.cpp against the same formulas in double, as a program: for processors that run here in an emulator only.
// tests/unit/kernels/test_other_processors.py compiles it; it prints the largest relative L2 distance and its name.
#include "check.h"

template <typename T>
static void compare(const char* name, const std::vector<T>& obtained, const numbers& expected) {
  double off = 0.0, size = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    double apart = wide(obtained[i]) - expected[i];
    off += apart * apart;
    size += expected[i] * expected[i];
  }
  note(std::sqrt(off / size), name);
}

static void norms(bool centered) {
  const int64_t rows = 70, d = 37;
  numbers x = drawn(rows * d), w = drawn(d), b = drawn(d), g = drawn(rows * d), y(rows * d), dx(rows * d), dw(d), db(d);
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, square = 0, dot = 0, total = 0;
    for (int64_t i = 0; i < d; ++i) mean += centered ? x[r * d + i] / d : 0.0;
    for (int64_t i = 0; i < d; ++i) square += (x[r * d + i] - mean) * (x[r * d + i] - mean) / d;
    double rstd = 1.0 / std::sqrt(square + 1e-5);
    for (int64_t i = 0; i < d; ++i) {
      double n = (x[r * d + i] - mean) * rstd, scaled = g[r * d + i] * w[i];
      y[r * d + i] = n * w[i] + (centered ? b[i] : 0.0);
      dot += scaled * n / d, total += centered ? scaled / d : 0.0;
      dw[i] += g[r * d + i] * n, db[i] += g[r * d + i];
    }
    for (int64_t i = 0; i < d; ++i)
      dx[r * d + i] = rstd * (g[r * d + i] * w[i] - total - (x[r * d + i] - mean) * rstd * dot);
  }
  std::vector<real> in = narrow(x), back = narrow(g), out(rows * d), gradient(rows * d);
  std::vector<real> again(rows * d);
  std::vector<float> scale = floats(w), shift = floats(b), stats(2 * rows), ow(d), ob(d);
  norm_forward(in.data(), scale.data(), centered ? shift.data() : nullptr, out.data(), stats.data(), rows, d, 1e-5f, 0.0f,
               centered);
  norm_backward(back.data(), in.data(), scale.data(), centered ? shift.data() : nullptr, stats.data(), gradient.data(),
                again.data(), ow.data(), ob.data(), rows, d, 0.0f, centered);
  if (again != out) note(INFINITY, "norm made again");
  compare("norm", out, y), compare("norm dx", gradient, dx), compare("norm dw", ow, dw);
  if (centered) compare("norm db", ob, db);
}

static void softmax(float cap, int64_t window) {
  const int64_t matrices = 3, queries = 21, keys = 30, first = 9, count = matrices * queries * keys;
  const double scale = 0.3;
  numbers s = drawn(count, 4.0), g = drawn(count), p(count), ds(count);
  for (int64_t row = 0; row < matrices * queries; ++row) {
    int64_t place = first + row % queries;
    double total = 0, dot = 0;
    auto seen = [&](int64_t i) { return i <= place && (window == 0 || i > place - window); };
    auto score = [&](int64_t i) { double z = s[row * keys + i] * scale; return cap > 0 ? cap * std::tanh(z / cap) : z; };
    for (int64_t i = 0; i < keys; ++i) if (seen(i)) total += p[row * keys + i] = std::exp(score(i));
    for (int64_t i = 0; i < keys; ++i) dot += (p[row * keys + i] /= total) * g[row * keys + i];
    for (int64_t i = 0; i < keys; ++i) {
      double slope = cap > 0 ? 1.0 - std::pow(score(i) / cap, 2) : 1.0;
      ds[row * keys + i] = p[row * keys + i] * (g[row * keys + i] - dot) * scale * slope;
    }
  }
  std::vector<real> scores = narrow(s), back = narrow(g), kept(count);
  softmax_forward(scores.data(), kept.data(), matrices, queries, keys, first, window, scale, cap);
  compare("softmax", scores, p);
  softmax_backward(back.data(), scores.data(), kept.data(), matrices, queries, keys, first, window, scale, cap);
  compare("softmax gradient", back, ds);
}

static void gated(int act) {
  const int64_t count = 501;
  numbers g = drawn(count, 2.0), u = drawn(count), d = drawn(count), h(count), dg(count), du(count);
  auto value = [act](double x) {
    return act == 0 ? x / (1.0 + std::exp(-x)) : 0.5 * x * (1.0 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
  };
  for (int64_t i = 0; i < count; ++i) {
    h[i] = value(g[i]) * u[i], du[i] = d[i] * value(g[i]);
    dg[i] = d[i] * u[i] * (value(g[i] + 1e-5) - value(g[i] - 1e-5)) / 2e-5;
  }
  std::vector<real> gate = narrow(g), up = narrow(u), back = narrow(d), out(count), dgate(count), dup(count), again(count);
  gated_forward(gate.data(), up.data(), out.data(), count, act);
  gated_backward(back.data(), gate.data(), up.data(), dgate.data(), dup.data(), again.data(), count, act);
  if (again != out) note(INFINITY, "gated made again");
  compare("gated", out, h), compare("gated dgate", dgate, dg), compare("gated dup", dup, du);
}

static void loss(float cap) {
  const int64_t rows = 9, words = 203;
  numbers z = drawn(rows * words, 3.0), dz(rows * words), losses(rows);
  std::vector<int64_t> targets(rows);
  for (int64_t r = 0; r < rows; ++r) {
    targets[r] = 22 * r;
    auto logit = [&](int64_t i) { double x = z[r * words + i]; return cap > 0 ? cap * std::tanh(x / cap) : x; };
    double total = 0;
    for (int64_t i = 0; i < words; ++i) total += std::exp(logit(i));
    losses[r] = std::log(total) - logit(targets[r]);
    for (int64_t i = 0; i < words; ++i)
      dz[r * words + i] = (std::exp(logit(i)) / total - (i == targets[r])) * (cap > 0 ? 1.0 - std::pow(logit(i) / cap, 2) : 1.0);
  }
  std::vector<real> logits = narrow(z);
  std::vector<float> out(rows);
  cross_entropy(logits.data(), targets.data(), out.data(), rows, words, cap, 1);
  compare("loss", out, losses), compare("loss gradient", logits, dz);
}

static void rotation() {
  const int64_t tokens = 11, heads = 3, d = 16, half = 6;
  numbers x = drawn(tokens * heads * d), y(x.size());
  std::vector<float> cosine(tokens * half), sine(tokens * half);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < half; ++i) cosine[t * half + i] = std::cos(t * 0.1 * (i + 1)), sine[t * half + i] = std::sin(t * 0.1 * (i + 1));
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < d; ++i) {
        const double* in = &x[(t * heads + h) * d];
        int64_t pair = t * half + i % half;
        y[(h * tokens + t) * d + i] = i < half       ? in[i] * cosine[pair] - in[i + half] * sine[pair]
                                      : i < 2 * half ? in[i] * cosine[pair] + in[i - half] * sine[pair]
                                                     : in[i];
      }
  std::vector<real> in = narrow(x), out(x.size()), again(x.size());
  rope(in.data(), out.data(), cosine.data(), sine.data(), tokens, heads, d, half, heads * d, 1);
  compare("rope", out, y);
  rope(out.data(), again.data(), cosine.data(), sine.data(), tokens, heads, d, half, heads * d, 0);
  compare("rope and back", again, x);
}

static void drops() {
  const int64_t count = 4096;
  numbers x = drawn(count), y(count);
  std::vector<real> in = narrow(x), out(count), added = narrow(numbers(count, 0.0));
  dropout(in.data(), out.data(), count, 11, 0.25f, 0);
  dropout(in.data(), added.data(), count, 11, 0.25f, 1);
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) kept += wide(out[i]) != 0, y[i] = wide(out[i]) != 0 ? x[i] / 0.75 : 0.0;
  compare("dropout", out, y), compare("dropout added", added, y);
  if (kept < 2950 || kept > 3190) note(INFINITY, "dropout's share");
}

int main() {
  norms(false), norms(true);
  softmax(0.0f, 0), softmax(2.0f, 0), softmax(0.0f, 7);
  gated(0), gated(1), loss(0.0f), loss(5.0f), rotation(), drops();
  std::printf("%.3g %s\n", worst, name_of_worst.c_str());
  return 0;
}
