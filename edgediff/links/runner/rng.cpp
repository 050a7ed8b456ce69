#include "rng.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace edgediff {
namespace {

constexpr double kLog2 = 0.6931471805599453, kSqrtHalf = 0.7071067811865476;
constexpr double kTwoPi = 6.283185307179586, kTwoPi32 = 6.2831854820251465;  // the second as a float32
constexpr double kTwoOverPi = 0.6366197723675814;
constexpr double kHalfPiHigh = 1.5707963267341256, kHalfPiLow = 6.077100506506192e-11;

/// 1 / divisors, signs alternating from the last one on where `alternating`: the highest power first.
template <std::size_t Size>
constexpr std::array<double, Size> reciprocals(const std::array<double, Size>& divisors, bool alternating) {
  std::array<double, Size> found{};
  for (std::size_t index = 0; index < Size; ++index) {
    const double sign = alternating && (Size - 1 - index) % 2 == 1 ? -1.0 : 1.0;
    found[index] = sign / divisors[index];
  }
  return found;
}

constexpr auto kAtanh = reciprocals<11>({21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1}, false);
constexpr auto kSine =
    reciprocals<9>({355687428096000, 1307674368000, 6227020800, 39916800, 362880, 5040, 120, 6, 1}, true);
constexpr auto kCosine =
    reciprocals<10>({6402373705728000, 20922789888000, 87178291200, 479001600, 3628800, 40320, 720, 24, 2, 1}, true);

template <std::size_t Size>
double horner(double z, const std::array<double, Size>& coefficients) {
  double total = coefficients[0];
  for (std::size_t index = 1; index < Size; ++index) total = total * z + coefficients[index];
  return total;
}

/// log(x), 0 < x <= 1.
double log_of(double x) {
  int k = 0;
  double m = std::frexp(x, &k);
  if (m < kSqrtHalf) {
    m *= 2.0;
    --k;
  }
  const double s = (m - 1.0) / (m + 1.0);
  return k * kLog2 + 2.0 * (s * horner(s * s, kAtanh));
}

/// sin and cos, 0 <= angle < 7.
std::pair<double, double> sin_cos(double angle) {
  const double n = std::floor(angle * kTwoOverPi + 0.5);
  const double y = (angle - n * kHalfPiHigh) - n * kHalfPiLow;
  double sine = y * horner(y * y, kSine), cosine = horner(y * y, kCosine);
  const int quarter = static_cast<int>(n) % 4;
  if (quarter % 2 == 1) std::swap(sine, cosine);
  return {quarter >= 2 ? -sine : sine, (quarter + 1) % 4 >= 2 ? -cosine : cosine};
}

double round_32(double x) { return static_cast<double>(static_cast<float>(x)); }

double radius_of(double uniform) { return std::sqrt(-2.0 * log_of(uniform)); }

/// 16 normals of 16 words.
void box_muller_16(std::mt19937& words, double* out) {
  std::array<double, 16> uniform{};
  for (double& one : uniform) one = (words() & 0xFFFFFF) * 0x1p-24;
  for (std::size_t index = 0; index < 8; ++index) {
    const double radius = radius_of(1.0 - uniform[index]);
    const auto [sine, cosine] = sin_cos(round_32(uniform[index + 8] * kTwoPi32));
    out[index] = radius * cosine;
    out[index + 8] = radius * sine;
  }
}

using Words = std::array<std::uint64_t, 4>;

/// Philox-4x32-10 (Salmon et al., 2011).
Words philox_4x32(Words c, std::uint64_t seed) {
  std::uint64_t k0 = seed & 0xFFFFFFFF, k1 = seed >> 32;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = 0xD2511F53 * c[0], b = 0xCD9E8D57 * c[2];
    c = {(b >> 32) ^ c[1] ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k1, a & 0xFFFFFFFF};
    k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF;
    k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF;
  }
  return c;
}

}  // namespace

Rng::Rng(std::uint64_t seed, bool is_philox)
    : seed_(seed), is_philox_(is_philox), words_(static_cast<std::uint32_t>(seed & 0xFFFFFFFF)) {}

Tensor Rng::normal(const Shape& shape) {
  Tensor tensor(shape);
  const std::size_t count = tensor.values.size();
  const std::vector<double> values = is_philox_ ? philox(count) : count >= 16 ? groups(count) : pairs(count);
  std::transform(values.begin(), values.end(), tensor.values.begin(), [](double v) { return static_cast<float>(v); });
  return tensor;
}

std::vector<double> Rng::groups(std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t index = 0; index + 16 <= count; index += 16) box_muller_16(words_, values.data() + index);
  if (count % 16 == 0) return values;
  for (std::size_t rest = count % 16; rest > 0; --rest) words_();  // those of the group that is not whole
  box_muller_16(words_, values.data() + (count - 16));
  return values;
}

std::vector<double> Rng::pairs(std::size_t count) {
  const auto uniform = [this] {
    const std::uint64_t high = words_();
    return static_cast<double>((high << 32 | words_()) & ((std::uint64_t{1} << 53) - 1)) * 0x1p-53;
  };
  std::vector<double> values;
  if (spare_) values.push_back(*spare_);
  while (values.size() < count) {
    const double turn = uniform(), radius = radius_of(1.0 - uniform());
    const auto [sine, cosine] = sin_cos(kTwoPi * turn);
    values.push_back(radius * cosine);
    values.push_back(radius * sine);
  }
  spare_ = values.size() > count ? std::optional<double>(values[count]) : std::nullopt;
  values.resize(count);
  return values;
}

std::vector<double> Rng::philox(std::size_t count) {
  constexpr double kScale = kTwoPi32 * 0x1p-32;
  std::vector<double> values(count);
  for (std::uint64_t index = 0; index < count; ++index) {
    const Words words = philox_4x32({draws_ & 0xFFFFFFFF, draws_ >> 32, index & 0xFFFFFFFF, index >> 32}, seed_);
    const double first = round_32(static_cast<double>(words[0])), second = round_32(static_cast<double>(words[1]));
    const double uniform = round_32(first * 0x1p-32 + 0x1p-33);
    const auto [sine, cosine] = sin_cos(round_32(second * kScale + kScale / 2.0));
    values[index] = radius_of(uniform) * sine;
  }
  ++draws_;
  return values;
}

}  // namespace edgediff
