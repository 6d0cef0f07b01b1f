/* The compiled part of exact averaging: what it computes, `kernels.py` says function by function.
 *
 * A sum is kept as one double an element for as long as that holds it exactly, and which elements it failed is noted;
 * those are added up again as whole numbers (whole.h). Nothing here rounds but the last step, and no compiler may
 * contract, reorder or assume anything about floating point: the build says so.
 *
 * `wide` is whether columns are of doubles, and not of floats; it is a constant wherever a loop asks for it.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "whole.h"

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

enum { TILE = 1024 }; /* elements whose sum is built at a time: what that takes stays in a core's first caches */
enum { PART = 64 }; /* elements that are added carefully where one of them needs it */

static const double SPLITTER = 134217729.0; /* 2^27 + 1: Dekker's, for products of doubles */
/* Bits of a double that a float has not, and the first of them; 2^-125 as a double's bits. */
static const int64_t LOST = (1LL << 29) - 1, HALF_WAY = 1LL << 28, NORMAL = (1023LL - 125) << 52;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE const void *from(const void *column, int64_t first, int wide) {
  return (const char *)column + first * (wide ? 8 : 4);
}

INLINE double at(const void *column, int64_t j, int wide) {
  return wide ? ((const double *)column)[j] : (double)((const float *)column)[j];
}

/* Add one term. The sum is exact if both differences give back what was added: of the two the one that takes the
 * larger away is exact (Dekker, Numerische Mathematik 18, 1971), whichever that is. */
INLINE double step(double total, double term, int64_t *bad) {
  double after = total + term;
  *bad |= (int64_t)(after - total != term) | (int64_t)(after - term != total);
  return after;
}

/* Whether a sum is exact can be seen from its terms' exponents, nearly always: eight rows at a time as whole numbers,
 * where looking at each addition takes three more of them. */

INLINE uint32_t magnitude_at(const void *column, int64_t j) { return ((const uint32_t *)column)[j] << 1; }

INLINE uint32_t larger_of(uint32_t a, uint32_t b) { return a > b ? a : b; }
INLINE uint32_t smaller_of(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* The largest magnitude of each row, and the smallest but for zeros, less one. */
INLINE void look_at(const void *const *columns, int64_t count, int64_t first, int64_t size, uint32_t *restrict high,
                    uint32_t *restrict low) {
  int64_t i = 0;
  for (int64_t j = 0; j < size; j++) {
    high[j] = 0;
    low[j] = UINT32_MAX;
  }
  for (; i + 4 <= count; i += 4) {
    const void *restrict c0 = from(columns[i], first, 0), *restrict c1 = from(columns[i + 1], first, 0);
    const void *restrict c2 = from(columns[i + 2], first, 0), *restrict c3 = from(columns[i + 3], first, 0);
    for (int64_t j = 0; j < size; j++) {
      const uint32_t a = magnitude_at(c0, j), b = magnitude_at(c1, j);
      const uint32_t c = magnitude_at(c2, j), d = magnitude_at(c3, j);
      high[j] = larger_of(larger_of(high[j], larger_of(a, b)), larger_of(c, d));
      low[j] = smaller_of(smaller_of(low[j], smaller_of(a - 1, b - 1)), smaller_of(c - 1, d - 1));
    }
  }
  for (; i < count; i++) {
    const void *restrict c0 = from(columns[i], first, 0);
    for (int64_t j = 0; j < size; j++) {
      const uint32_t a = magnitude_at(c0, j);
      high[j] = larger_of(high[j], a);
      low[j] = smaller_of(low[j], a - 1);
    }
  }
}

/* How many binades a row's values may span so that no sum of them times weights, which are whole numbers,
 * takes more than a double's 53 bits: a value is a multiple of 2^-23 of its binade, and below twice that. */
INLINE int32_t span_of(const double *weights, int64_t count) {
  double total = 0.0;
  int exponent;
  for (int64_t i = 0; i < count; i++) total += weights[i];
  frexp(total, &exponent);
  return 53 - 24 - exponent;
}

INLINE int are_exact(const uint32_t *restrict high, const uint32_t *restrict low, int64_t size, int32_t span) {
  int32_t bad = 0;
  for (int64_t j = 0; j < size; j++) {
    const int32_t top = (int32_t)(high[j] >> 24), bottom = (int32_t)(low[j] >> 24);
    bad |= (int32_t)(top - bottom > span) | (int32_t)(top == 255);
  }
  return !bad;
}

INLINE double plus_product(double total, double value, double weight) {
#ifdef __FMA__
  return __builtin_fma(value, weight, total); /* both are exact, together as one after the other */
#else
  return total + value * weight;
#endif
}

/* `step`, or no look at whether it was exact. */
INLINE double onto(double total, double value, double weight, int64_t *bad, int careful) {
  return careful ? step(total, value * weight, bad) : plus_product(total, value, weight);
}

INLINE double onto_4(double x, const void *const *c, const double *w, int64_t j, int64_t *bad, int wide, int careful) {
  x = onto(x, at(c[0], j, wide), w[0], bad, careful);
  x = onto(x, at(c[1], j, wide), w[1], bad, careful);
  x = onto(x, at(c[2], j, wide), w[2], bad, careful);
  return onto(x, at(c[3], j, wide), w[3], bad, careful);
}

/* Four columns or eight, so many that a total is loaded and stored once for all of them. */
INLINE void add_some(const void *const *columns, const double *weights, int count, int64_t size,
                     double *restrict total, int64_t *restrict bad, int wide, int careful) {
  const void *c[8];
  double w[8];
  for (int k = 0; k < count; k++) {
    c[k] = columns[k];
    w[k] = weights[k];
  }
  for (int64_t j = 0; j < size; j++) {
    int64_t y = 0;
    double x = onto_4(total[j], c, w, j, &y, wide, careful);
    if (count == 8) x = onto_4(x, c + 4, w + 4, j, &y, wide, careful);
    total[j] = x;
    if (careful) bad[j] |= y;
  }
}

INLINE void add_1(const void *restrict c, double w, int64_t size, double *restrict total, int64_t *restrict bad,
                  int wide, int careful) {
  for (int64_t j = 0; j < size; j++) {
    int64_t y = 0;
    total[j] = onto(total[j], at(c, j, wide), w, &y, careful);
    if (careful) bad[j] |= y;
  }
}

INLINE void add_all(const void *const *columns, int64_t count, const double *weights, int64_t first, int64_t size,
                    double *restrict total, int64_t *restrict bad, int wide, int careful) {
  const void *some[8];
  int64_t i = 0;
  for (int64_t j = 0; j < size; j++) {
    total[j] = -0.0; /* the one value that adding does not change, whatever zero it is added to */
    if (careful) bad[j] = 0;
  }
  for (; i + 8 <= count; i += 8) {
    for (int k = 0; k < 8; k++) some[k] = from(columns[i + k], first, wide);
    add_some(some, weights + i, 8, size, total, bad, wide, careful);
  }
  if (i + 4 <= count) {
    for (int k = 0; k < 4; k++) some[k] = from(columns[i + k], first, wide);
    add_some(some, weights + i, 4, size, total, bad, wide, careful);
    i += 4;
  }
  for (; i < count; i++) add_1(from(columns[i], first, wide), weights[i], size, total, bad, wide, careful);
}

/* The sum of columns times weights from row `first` on: into `total`, and, where that is not exact for some row, which
 * it returns, those into `bad`. */
INLINE int add_up(const void *const *columns, int64_t count, const double *weights, int64_t first, int64_t size,
                  int32_t span, double *restrict total, int64_t *restrict bad, int wide) {
  int careful[TILE / PART], some = 0;
  if (wide) {
    add_all(columns, count, weights, first, size, total, bad, 1, 1);
    return 1;
  }
  uint32_t high[TILE], low[TILE];
  look_at(columns, count, first, size, high, low);
  for (int64_t j = 0; j < size; j += PART)
    some += careful[j / PART] = !are_exact(high + j, low + j, smaller(PART, size - j), span);
  if (some * 2 * PART > size) {
    add_all(columns, count, weights, first, size, total, bad, 0, 1);
    return 1;
  }
  add_all(columns, count, weights, first, size, total, bad, 0, 0);
  if (some) memset(bad, 0, size * sizeof *bad);
  for (int64_t j = 0; some && j < size; j += PART)
    if (careful[j / PART])
      add_all(columns, count, weights, first + j, smaller(PART, size - j), total + j, bad + j, 0, 1);
  return some != 0;
}

INLINE int64_t bits_of(double value) {
  int64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

INLINE double of_bits(int64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

INLINE void put(void *out, int64_t j, double value, int wide) {
  if (wide)
    ((double *)out)[j] = value;
  else
    ((float *)out)[j] = (float)value;
}

/* `total / by` rounded to odd, and from there to nearest where `out` is of floats.
 *
 * Rounded to odd, a value with two digits more than the target rounds to what the exact quotient rounds to (Boldo,
 * Melquiond, "Emulation of FMA and correctly rounded sums", IEEE Transactions on Computers 57, 2008). The remainder's
 * sign is exact: `total - q * by` with the product in two parts (Dekker 1971), as `total` and `q * by` are within a
 * factor of two (Sterbenz). `by` is a whole number below 2^53, `total` a sum of float32 values times such. */
INLINE void divide(const double *restrict total, int64_t size, double by, void *restrict out, int wide) {
  const double c = SPLITTER * by, by_high = c - (c - by), by_low = by - by_high;
  for (int64_t j = 0; j < size; j++) {
    const double dividend = total[j], q = dividend / by, high = q * by;
    const double d = SPLITTER * q, q_high = d - (d - q), q_low = q - q_high;
    const double low = ((q_high * by_high - high) + q_high * by_low + q_low * by_high) + q_low * by_low;
    const double rest = (dividend - high) - low;
    const int64_t bits = bits_of(q), outwards = (rest > 0) == (q > 0) ? 1 : -1;
    put(out, j, of_bits(bits + (rest != 0.0 && (bits & 1) == 0 ? outwards : 0)), wide);
  }
}

/* The same into floats by a multiplication with the reciprocal, whose result is within three units in the last place:
 * right unless that lies as near to the middle between two floats, or below their normal range. Returns whether that
 * is so of none. */
INLINE int divide_simply(const double *restrict total, int64_t size, double by, double *restrict quotients,
                         float *restrict out) {
  const double reciprocal = 1.0 / by;
  int64_t doubtful = 0;
  for (int64_t j = 0; j < size; j++) {
    quotients[j] = total[j] * reciprocal;
    out[j] = (float)quotients[j];
  }
  for (int64_t j = 0; j < size; j++) {
    const int64_t bits = bits_of(quotients[j]), from_middle = (bits & LOST) - HALF_WAY;
    const int64_t magnitude = bits & INT64_MAX;
    doubtful |= (int64_t)((from_middle <= 3) & (from_middle >= -3)) | (int64_t)((magnitude < NORMAL) & (magnitude != 0));
  }
  return doubtful == 0;
}

/* Note the rows that are bad, ascending; how many there are now. */
INLINE int64_t note(const int64_t *bad, int64_t size, int64_t first, int64_t *places, int64_t found) {
  int64_t any = 0;
  for (int64_t j = 0; j < size; j++) any |= bad[j];
  for (int64_t j = 0; any && j < size; j++)
    if (bad[j]) places[found++] = first + j;
  return found;
}

INLINE int64_t mean_of(const void *const *columns, int64_t count, const double *weights, double by, void *out,
                       int64_t size, int64_t *places, int wide, int wide_out) {
  const int32_t span = span_of(weights, count);
  double total[TILE], quotients[TILE];
  int64_t bad[TILE], found = 0;
  for (int64_t first = 0; first < size; first += TILE) {
    const int64_t m = smaller(TILE, size - first);
    char *const to = (char *)out + first * (wide_out ? 8 : 4);
    const int looked = add_up(columns, count, weights, first, m, span, total, bad, wide);
    if (wide_out || !divide_simply(total, m, by, quotients, (float *)to)) divide(total, m, by, to, wide_out);
    if (looked) found = note(bad, m, first, places, found);
  }
  return found;
}

EXPORT int64_t concilia_mean(const void *const *columns, int64_t count, const double *weights, int wide, double by,
                             void *out, int64_t size, int wide_out, int64_t *places) {
  if (wide)
    return wide_out ? mean_of(columns, count, weights, by, out, size, places, 1, 1)
                    : mean_of(columns, count, weights, by, out, size, places, 1, 0);
  return wide_out ? mean_of(columns, count, weights, by, out, size, places, 0, 1)
                  : mean_of(columns, count, weights, by, out, size, places, 0, 0);
}

EXPORT int64_t concilia_add(const void *const *columns, int64_t count, const double *weights, double *total,
                            int64_t size, int64_t *places) {
  const int32_t span = span_of(weights, count);
  int64_t bad[TILE], found = 0;
  for (int64_t first = 0; first < size; first += TILE) {
    const int64_t m = smaller(TILE, size - first);
    if (add_up(columns, count, weights, first, m, span, total + first, bad, 0))
      found = note(bad, m, first, places, found);
  }
  return found;
}

/* Floats ordered as whole numbers with signs, so that a negative zero is below a positive one; whether any of them is
 * not finite. The same way back. */
INLINE int32_t read_keys(const void *column, int64_t first, int64_t size, int32_t *restrict keys) {
  const int32_t *restrict bits = (const int32_t *)column + first;
  int32_t special = 0;
  for (int64_t j = 0; j < size; j++) {
    keys[j] = bits[j] ^ ((bits[j] >> 31) & INT32_MAX);
    special |= (bits[j] & 0x7F800000) == 0x7F800000;
  }
  return special;
}

INLINE void to_values(int32_t *keys, int64_t size) {
  for (int64_t j = 0; j < size; j++) keys[j] ^= (keys[j] >> 31) & INT32_MAX;
}

INLINE void put_in_order(int32_t *restrict low, int32_t *restrict high, int64_t size) {
  for (int64_t j = 0; j < size; j++) {
    const int32_t a = low[j], b = high[j];
    low[j] = a < b ? a : b;
    high[j] = a < b ? b : a;
  }
}

EXPORT int64_t concilia_middles(const void *const *columns, int64_t count, const int32_t *network, int64_t pairs,
                                int64_t first, int64_t last, void *out, int64_t size, int wide_out, int64_t *places,
                                int64_t side) {
  double total[TILE];
  int64_t bad[TILE], found = 0, special = 0;
  if (side < 1 || side > TILE) return -3;
  int32_t *keys = malloc((size_t)(count * side) * sizeof *keys);
  const void **rows = malloc((size_t)(last - first) * sizeof *rows);
  double *ones = malloc((size_t)(last - first) * sizeof *ones);
  if (keys == NULL || rows == NULL || ones == NULL) size = -1;
  for (int64_t i = 0; size >= 0 && i < last - first; i++) {
    rows[i] = keys + (first + i) * side;
    ones[i] = 1.0;
  }
  const int32_t span = size < 0 ? 0 : span_of(ones, last - first);
  for (int64_t start = 0; start < size; start += side) {
    const int64_t m = smaller(side, size - start);
    char *const to = (char *)out + start * (wide_out ? 8 : 4);
    for (int64_t i = 0; i < count; i++) special |= read_keys(columns[i], start, m, keys + i * side);
    for (int64_t k = 0; k < pairs; k++)
      put_in_order(keys + network[2 * k] * side, keys + network[2 * k + 1] * side, m);
    for (int64_t i = first; i < last; i++) to_values(keys + i * side, m);
    const int looked = add_up(rows, last - first, ones, 0, m, span, total, bad, 0);
    if (wide_out)
      divide(total, m, (double)(last - first), to, 1);
    else
      divide(total, m, (double)(last - first), to, 0);
    if (looked) found = note(bad, m, start, places, found);
  }
  free(keys);
  free(rows);
  free(ones);
  return size < 0 ? -2 : special ? -1 : found;
}

INLINE double squares_of(const void *ours, const void *theirs, int64_t size, int is_difference, int wide) {
  double lanes[16] = {0}, total = 0.0;
  const double factor = is_difference ? 1.0 : 0.0;
  const int64_t whole = size - size % 16;
  for (int64_t start = 0; start < whole; start += 16)
    for (int k = 0; k < 16; k++) {
      const double d = at(ours, start + k, wide) - factor * at(theirs, start + k, wide);
      lanes[k] += d * d;
    }
  for (int64_t j = whole; j < size; j++) {
    const double d = at(ours, j, wide) - factor * at(theirs, j, wide);
    lanes[0] += d * d;
  }
  for (int k = 0; k < 16; k++) total += lanes[k];
  return total;
}

EXPORT double concilia_squares(const void *ours, const void *theirs, int64_t size, int is_difference, int wide) {
  return wide ? squares_of(ours, theirs, size, is_difference, 1) : squares_of(ours, theirs, size, is_difference, 0);
}

EXPORT void concilia_gather(const void *const *columns, int64_t count, int wide, const int64_t *places, int64_t size,
                            double *values) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t j = 0; j < size; j++) values[j * count + i] = at(columns[i], places[j], wide);
}

EXPORT int concilia_means(const double *values, int64_t rows, int64_t columns, const int64_t *weights, int64_t by,
                          int odd, double *out) {
  for (int64_t i = 0; i < rows; i++)
    if (whole_mean((const int64_t *)values + i * columns, columns, weights, by, odd, out + i)) return NOT_FINITE;
  return FINE;
}

EXPORT int concilia_components(const double *values, int64_t rows, int64_t columns, const int64_t *weights,
                               const int64_t *places, double *total, int64_t *at_places, double *rest, int64_t *used) {
  *used = 0;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t before = *used;
    if (whole_components((const int64_t *)values + i * columns, columns, weights, total + places[i], rest, used))
      return NOT_FINITE;
    for (int64_t j = before; j < *used; j++) at_places[j] = places[i];
  }
  return FINE;
}
