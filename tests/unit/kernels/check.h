// What the two programs here share: numbers that the kernels' type holds exactly, and the largest distance that they found.
#include <cstdio>
#include <functional>
#include <random>
#include <string>

#include "cpu.cpp"

typedef std::vector<double> numbers;
static std::mt19937 generator(7);
static double worst = 0.0;
static std::string name_of_worst = "none";

static void note(double relative, const std::string& name) {  // what is no number stays the worst
  if (!std::isnan(worst) && !(relative <= worst)) worst = relative, name_of_worst = name;
}
static numbers drawn(size_t count, double scale = 1.0) {
  std::normal_distribution<double> normal(0.0, scale);
  numbers out(count);
  for (double& value : out) value = load(store(static_cast<float>(normal(generator))));
  return out;
}
static std::vector<real> narrow(const numbers& x) {
  std::vector<real> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = store(static_cast<float>(x[i]));
  return out;
}
static std::vector<float> floats(const numbers& x) { return std::vector<float>(x.begin(), x.end()); }
inline double wide(real value) { return load(value); }
#ifndef AIFT_FLOAT
inline double wide(float value) { return value; }
#endif
