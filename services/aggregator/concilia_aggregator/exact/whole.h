/* Sums as whole numbers, in digits of 32 bits: the slow road, for what one double does not hold.
 *
 * Kulisch's long accumulator ("Computer Arithmetic and Validity", 2008), as long as the values at hand need it. Values
 * are given by their bits.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { DIGITS = 80 }; /* most: 2,098 bits of double's range, 53 of a value, 63 of a weight, 32 of how many there are */
enum { FINE = 0, NOT_FINITE = 1 };

static const int64_t LOW = (1LL << 32) - 1, FRACTION = (1LL << 52) - 1;
enum { QUOTIENT_BITS = 62 };

/* The exponents of the lowest bit of any value and of the highest value's lowest bit. */
static int range_of(const int64_t *values, int64_t count, int64_t *lowest, int64_t *highest) {
  *lowest = 4096;
  *highest = -4096;
  for (int64_t j = 0; j < count; j++) {
    const int64_t field = (values[j] >> 52) & 2047, exponent = (field > 1 ? field : 1) - 1075;
    if (field == 2047) return NOT_FINITE;
    if (field == 0 && (values[j] & FRACTION) == 0) continue;
    if (exponent < *lowest) *lowest = exponent;
    if (exponent > *highest) *highest = exponent;
  }
  return FINE;
}

static int64_t length_of(int64_t lowest, int64_t highest) { return ((highest - lowest + 53 + 63 + 32) >> 5) + 2; }

static int64_t carry_over(int64_t *digits, int64_t length) {
  int64_t carry = 0;
  for (int64_t j = 0; j < length; j++) {
    const int64_t digit = digits[j] + carry;
    digits[j] = digit & LOW;
    carry = digit >> 32;
  }
  return carry;
}

static void add_product(int64_t *to, uint64_t part, uint64_t weight, int64_t sign) {
  const uint64_t product = part * weight;
  to[0] += sign * (int64_t)(product & (uint64_t)LOW);
  to[1] += sign * (int64_t)(product >> 32);
}

/* The sum of values times weights as a whole number of 2^lowest: its sign; its magnitude in `digits`. */
static int sum_up(const int64_t *values, int64_t count, const int64_t *weights, int64_t lowest, int64_t length,
                  int64_t *digits) {
  memset(digits, 0, (size_t)length * sizeof *digits);
  for (int64_t j = 0; j < count; j++) {
    const int64_t field = (values[j] >> 52) & 2047;
    const int64_t mantissa = (values[j] & FRACTION) | (field != 0 ? 1LL << 52 : 0);
    if (mantissa == 0) continue;
    const int64_t place = (field > 1 ? field : 1) - 1075 - lowest, sign = values[j] < 0 ? -1 : 1;
    const uint64_t shifted = (uint64_t)(mantissa & LOW) << (place & 31);
    const uint64_t upper = ((uint64_t)(mantissa >> 32) << (place & 31)) + (shifted >> 32);
    for (int half = 0; half < 2; half++) {
      const uint64_t weight = (uint64_t)(weights[j] >> (32 * half)) & (uint64_t)LOW;
      int64_t *const to = digits + (place >> 5) + half;
      if (weight == 0) continue;
      add_product(to, shifted & (uint64_t)LOW, weight, sign);
      add_product(to + 1, upper & (uint64_t)LOW, weight, sign);
      add_product(to + 2, upper >> 32, weight, sign);
    }
  }
  const int64_t carry = carry_over(digits, length);
  if (carry == 0) return 1;
  for (int64_t j = 0; j < length; j++) digits[j] = -digits[j];
  digits[length - 1] -= carry * (1LL << 32);
  carry_over(digits, length);
  return -1;
}

static int bit_at(const int64_t *digits, int64_t position) { return (int)((digits[position >> 5] >> (position & 31)) & 1); }

/* `digits / by`: its leading bits; the weight of the last of them as a power of two; whether anything is left. */
static int64_t quotient_of(const int64_t *digits, int64_t length, uint64_t by, int64_t *weight, int *left) {
  int64_t top = length - 1, position;
  uint64_t rest = 0, quotient = 0;
  while (top >= 0 && digits[top] == 0) top--;
  *weight = 0;
  *left = 0;
  if (top < 0) return 0;
  position = 32 * (top + 1);
  while (quotient < 1ULL << (QUOTIENT_BITS - 1)) {
    position--;
    rest = (rest << 1) | (uint64_t)(position >= 0 ? bit_at(digits, position) : 0);
    quotient <<= 1;
    if (rest >= by) {
      rest -= by;
      quotient |= 1;
    }
    if (position <= 0 && rest == 0) break;
  }
  *left = rest != 0;
  if (!*left && position > 0) {
    *left = (digits[position >> 5] & ((1LL << (position & 31)) - 1)) != 0;
    for (int64_t j = 0; j < position >> 5; j++) *left |= digits[j] != 0;
  }
  *weight = position;
  return (int64_t)quotient;
}

/* `bits * 2^exponent`, and something more where `left`: rounded to odd, or to nearest with ties to even. */
static double rounded(int64_t bits, int64_t exponent, int left, int odd) {
  const int64_t length = bits == 0 ? 0 : 64 - __builtin_clzll((unsigned long long)bits);
  const int64_t drop = length - 53 > -1074 - exponent ? length - 53 : -1074 - exponent;
  if (drop <= 0) return ldexp((double)bits, (int)exponent);
  if (drop > 63) return 0.0;
  int64_t kept = drop > 62 ? 0 : bits >> drop;
  const int64_t lost = drop > 62 ? bits : bits & ((1LL << drop) - 1);
  const uint64_t half = 1ULL << (drop - 1);
  if (odd)
    kept |= lost != 0 || left;
  else if ((uint64_t)lost > half || ((uint64_t)lost == half && (left || (kept & 1))))
    kept++;
  return ldexp((double)kept, (int)(exponent + drop));
}

/* The zero that IEEE 754 addition gives: negative only where every value is. */
static double zero_of(const int64_t *values, int64_t count) {
  for (int64_t j = 0; j < count; j++)
    if (values[j] != INT64_MIN) return 0.0;
  return -0.0;
}

/* The sum of values times weights, divided by `by` (below 2^63, as weights are). */
static int whole_mean(const int64_t *values, int64_t count, const int64_t *weights, int64_t by, int odd, double *mean) {
  int64_t digits[DIGITS], lowest, highest, weight;
  int left;
  if (range_of(values, count, &lowest, &highest)) return NOT_FINITE;
  if (lowest > highest) {
    *mean = zero_of(values, count);
    return FINE;
  }
  const int64_t length = length_of(lowest, highest);
  const int sign = sum_up(values, count, weights, lowest, length, digits);
  const int64_t bits = quotient_of(digits, length, (uint64_t)by, &weight, &left);
  *mean = sign * rounded(bits, lowest + weight, left, odd);
  return FINE;
}

/* The sum of values (floats', as doubles) times weights as doubles that do not overlap: the largest into `total`, the
 * others into `rest` from `*used` on. */
static int whole_components(const int64_t *values, int64_t count, const int64_t *weights, double *total, double *rest,
                            int64_t *used) {
  int64_t digits[DIGITS], lowest, highest;
  if (range_of(values, count, &lowest, &highest)) return NOT_FINITE;
  if (lowest > highest) {
    *total = zero_of(values, count);
    return FINE;
  }
  const int64_t length = length_of(lowest, highest);
  const int sign = sum_up(values, count, weights, lowest, length, digits);
  int is_first = 1;
  *total = 0.0;
  for (int64_t position = 32 * length - 1; position >= 0; position--) {
    if (!bit_at(digits, position)) continue;
    const int64_t last = position >= 52 ? position - 52 : 0;
    int64_t bits = 0;
    for (; position >= last; position--) bits = (bits << 1) | bit_at(digits, position);
    position++;
    const double component = sign * ldexp((double)bits, (int)(lowest + position));
    if (is_first)
      *total = component;
    else
      rest[(*used)++] = component;
    is_first = 0;
  }
  return FINE;
}
