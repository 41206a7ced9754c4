"""A decoder of files coded by the predictor, written from docs/format.md alone and in plain Python.

    python tests/coding/independent_decoder.py CODED ORIGINAL

It imports nothing of the package, so it shows whether the page says all that is needed. It is slow, about a
thousand samples in some seconds, and does not decode files that need a model. Headings in comments are those of
the page.
"""
import hashlib
import lzma
import math
import struct
import sys
import zlib

# ---- The file

def decode(data: bytes) -> bytes:
    """The original of a coded file. Raises: ValueError if it is damaged or needs a model."""
    magic, version, source, coder, length, start, n_bytes, rate, channels, width, flags, n_extra = \
        struct.unpack_from("<8sBBBQQQIBBBH", data)
    at = 44 + n_extra
    check(magic == b"\x89SWB\r\n\x1a\n" and version == 1, "another kind of file")
    check(checksum(data[:at]) == data[at:at + 4], "header")
    at, original, count = at + 4, b"", 0
    while data[at:at + 4] == b"SWBs":
        method, position, n, n_coded, crc, coded_crc = struct.unpack_from("<BQIIII", data, at + 4)
        check(checksum(data[at:at + 29]) == data[at + 29:at + 33], "segment")
        coded = data[at + 33:at + 33 + n_coded]
        check(position == len(original) and zlib.crc32(coded) == coded_crc, "segment")
        if method == 0: piece = coded
        elif method == 1: piece = lzma.decompress(coded, lzma.FORMAT_RAW, filters=LZMA)
        elif method == 2: piece = samples(coded, n//(channels*width), channels, width, flags & 1, flags >> 1)
        else: raise ValueError(f"method {method}")
        check(len(piece) == n and zlib.crc32(piece) == crc, "piece")
        original, at, count = original + piece, at + 33 + n_coded, count + 1
    mark, n_segments, digest = struct.unpack_from("<4sI32s", data, at)
    check(mark == b"SWBe" and checksum(data[at:at + 40]) == data[at + 40:] and n_segments == count, "end")
    check(len(original) == length and hashlib.sha256(original).digest() == digest, "original")
    return original


LZMA = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}]


def checksum(data): return struct.pack("<I", zlib.crc32(data))


def check(right, what):
    if not right: raise ValueError(f"damaged or unknown: {what}")


# ---- Method 2: the predictor

def samples(coded, n_frames, channels, width, big, signed):
    """The bytes of a segment's samples."""
    bits, first, groups = 8*width, coded[0], [min(8, channels - k) for k in range(0, channels, 8)]
    shift, stored, at = first & 127, first >> 7, 1 + 4*(len(groups) - 1)
    lengths = struct.unpack_from(f"<{len(groups) - 1}I", coded, 1)
    low = coded[at:at + n_frames*channels] if stored else bytes(n_frames*channels)
    at += n_frames*channels*stored
    ends = [at + sum(lengths[:i + 1]) for i in range(len(lengths))] + [len(coded)]
    parts = [predicted(coded[a:b], n_frames, c, bits - shift) for a, b, c in zip([at, *ends], ends, groups)]
    frames = [[code for part in parts for code in part[t]] for t in range(n_frames)]
    numbers = [(code << shift) + low[i] for i, code in enumerate(code for frame in frames for code in frame)]
    silence, order = 2**(bits - 1) if signed else 0, "big" if big else "little"
    return b"".join((x - silence).to_bytes(width, order, signed=bool(signed)) for x in numbers)


def predicted(coded, n_frames, channels, bits):
    """The codes of a group of channels."""
    coder, n_codes = RangeDecoder(coded), 2**bits
    past = [[] for _ in range(channels)]                    # samples as whole numbers around 0
    predictors = [Channel(k, channels, n_codes) for k in range(channels)]
    for _ in range(n_frames):
        for k, predictor in enumerate(predictors):
            predictor.predict(past)
            code = predictor.parts.find(coder.quantile())
            coder.consume(*predictor.parts.interval(code))
            predictor.learn(code - n_codes//2)
            past[k].append(float(code - n_codes//2))
    coder.end()
    return [[int(past[k][t]) + n_codes//2 for k in range(channels)] for t in range(n_frames)]


# ---- The range coder

class RangeDecoder:
    def __init__(self, coded):
        self.coded, self.at, self.range = coded, 8, 2**64 - 1
        self.number = int.from_bytes(coded[:8].ljust(8, b"\0"), "big")

    def quantile(self): return min(self.number//(self.range >> 40), 2**40 - 1)

    def consume(self, start, size):
        unit = self.range >> 40
        self.number, self.range = self.number - unit*start, unit*size
        while self.range < 2**56:
            byte = self.coded[self.at] if self.at < len(self.coded) else 0
            self.number, self.range, self.at = self.number << 8 | byte, self.range << 8, self.at + 1

    def end(self): check(self.at == len(self.coded) + 7, "range coder")


# ---- Sums

def halves(v):
    """The sum of eight numbers."""
    a, b, c, d = v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]
    return (a + c) + (b + d)


def dot(a, b):
    """The sum of products: eight sums side by side, then their total."""
    sums = [0.0]*8
    for i, (x, y) in enumerate(zip(a, b)): sums[i % 8] = sums[i % 8] + x*y
    return halves(sums)


def clip(x, limits): return min(max(x, limits[0]), limits[1])


# ---- Equations

def factor(A, n):
    """Make rows of an upper triangle and a right side, A[i] = [.., R[i][i], .., R[i][n - 1], b[i]], to U and y."""
    for m in range(n):
        row = A[m][m:]
        for k in range(m):
            if times := A[k][m]: row = [a - times*b for a, b in zip(row, A[k][m:])]
        if not row[0] > 1e-9: row[0] = 1e-9
        scale = 1/math.sqrt(row[0])
        A[m][m:] = [a*scale for a in row]


def back_substitute(A, n, order):
    """The first `order` weights."""
    w = [0.0]*order
    for i in range(order - 1, -1, -1):
        sums = [0.0]*8
        for j in range(i + 1, order): sums[j % 8] = sums[j % 8] + A[i][j]*w[j]
        w[i] = (A[i][n] - halves(sums))/A[i][i]
    return w


# ---- Least squares

class LeastSquares:
    """Predictions of channel k by the weights of several orders."""

    def __init__(self, k, channels, orders, decay, every):
        self.k, self.channels, self.decay, self.every, self.time = k, channels, decay, every, 0
        others = [s for s in range(channels) if s != k]
        used = [0]*channels
        self.places, self.n_weights = [], []                   # channel and lag of every weight
        for order in orders:
            for s in [k, *others]:
                lags = order if s == k else max(min(order//2, 16)//len(others)//4*4, 4)
                self.places += [(s, i) for i in range(used[s], lags)]
                used[s] = max(used[s], lags)
            self.n_weights.append(len(self.places))
        self.used = used
        self.u = [[0.0]*(lags + 1) for lags in used]           # latest first
        self.products = {(s, q): [] for s in range(channels) for q in range(channels)}  # latest last
        self.weights = [[0.0]*n for n in self.n_weights]

    def predictions(self, past):
        """What the weights of every order expect of the next sample."""
        k, t = self.k, self.time
        for s in range(self.channels):
            i = t if s < k else t - 1
            self.u[s] = [past[s][i] if i >= 0 else 0.0, *self.u[s][:-1]]
        for (s, q), ring in self.products.items():
            new = self.u[s][0]
            old = ring[-1] if ring else [0.0]*(self.used[q] + 1)
            ring.append([self.decay*p + new*x for p, x in zip(old, self.u[q])])
            if len(ring) > 300: del ring[0]
        early = 16 <= t < self.every and t & (t - 1) == 0
        if t > 0 and (t % self.every == 0 or early): self.solve()
        self.time += 1
        z = [self.u[s][i] for s, i in self.places]
        return [dot(w, z) for w in self.weights]

    def product(self, s, q, ago, lag):
        """P of channels s and q, some samples before the latest."""
        ring = self.products[s, q]
        return ring[-1 - ago][lag] if ago < len(ring) else 0.0

    def solve(self):
        n, A = len(self.places), []
        for a, (s, i) in enumerate(self.places):
            row = [0.0]*a
            for q, j in self.places[a:]:
                row.append(self.product(s, q, i + 1, j - i) if j >= i else self.product(q, s, j + 1, i - j))
            row[a] += 1.0 + 1e-13*self.product(s, s, 1, 0)
            A.append([*row, self.product(self.k, s, 0, i + 1)])
        factor(A, n)
        self.weights = [back_substitute(A, n, order) for order in self.n_weights]


# ---- Filters

class Filter:
    def __init__(self, lags, mu):
        self.lags, self.mu, self.weights, self.past, self.output = lags, mu, [0.0]*lags, [0.0]*lags, 0.0

    def expect(self):
        self.output = dot(self.weights, self.past)
        return self.output

    def learn(self, residual):
        """Returns what is left of the residual."""
        left = residual - self.output
        step = self.mu*left/(dot(self.past, self.past) + 1e-3*(self.lags + 1))
        self.weights = [w + step*x for w, x in zip(self.weights, self.past)]
        self.past = [residual, *self.past[:-1]]
        return left


# ---- Blends

def soft_blend(predictions, errors):
    least, weights, total = min(errors), 0.0, 0.0
    for prediction, error in zip(predictions, errors):
        v = (least + 1e-6)/(error + 1e-6)
        v = v*v
        v = v*v
        v = v*v
        weights, total = weights + v, total + v*prediction
    return total/weights


class Stack:
    """Least squares over predictions."""

    def __init__(self, m):
        self.m, self.count, self.weights = m, 0, [1/m]*m
        self.sums = [[0.0]*(m + 1) for _ in range(m)]

    def predict(self, inputs):
        self.inputs, m = inputs, self.m
        if self.count > 0 and self.count % 4 == 0:
            trace = 0.0
            for i in range(m): trace = trace + self.sums[i][i]
            ridge = 1e-5*trace/m + 1e-3
            A = [row[:] for row in self.sums]
            for i in range(m):
                A[i][i] += ridge
                A[i][m] += ridge/m
            factor(A, m)
            self.weights = back_substitute(A, m, m)
        return dot(self.weights, inputs)

    def learn(self, x):
        for value, row in zip(self.inputs, self.sums):
            row[:] = [0.998*s + value*y for s, y in zip(row, [*self.inputs, x])]
        self.count += 1


# ---- The distribution

FACTORS = [1/math.factorial(i) for i in range(13, -1, -1)]


def exp2(x):
    n = math.floor(x + 0.5)
    r, series = (x - n)*0.6931471805599453, FACTORS[0]
    for f in FACTORS[1:]: series = series*r + f
    return series*2.0**n


class Parts:
    """Eight logistics, four of them at each of two centers."""

    def __init__(self, n_codes):
        self.n_codes, self.count, self.rates = n_codes, 0, [0.2, 0.05, 0.01, 0.002]*2
        self.centers, self.scales, self.weights, self.means = [0.0]*8, [0.72]*8, [1/8]*8, [1.0]*8

    def below(self, code):
        """The probability of each part below the lower edge of a code."""
        if code in (0, self.n_codes): return [float(code > 0)]*8
        edge, out = code - self.n_codes//2 - 0.5, []
        for center, scale in zip(self.centers, self.scales):
            q = exp2(min(abs((edge - center)/scale), 600.0)*-1.4426950408889634)
            p = q/(1.0 + q)
            out.append(1 - p if edge > center else p)
        return out

    def start(self, code):
        if code in (0, self.n_codes): return 2**40 if code else 0
        return int(min(dot(self.weights, self.below(code)), 1.0)*float(2**40 - 2*self.n_codes)) + 2*code

    def interval(self, code): return self.start(code), self.start(code + 1) - self.start(code)

    def find(self, quantile):
        low, high = 0, self.n_codes
        while high - low > 1:
            middle = (low + high)//2
            if self.start(middle) <= quantile: low = middle
            else: high = middle
        return low

    def learn(self, x):
        code = int(x) + self.n_codes//2
        chances = [max(b - a, 0.0) for a, b in zip(self.below(code), self.below(code + 1))]
        evidence = [w*(p + 1e-9) for w, p in zip(self.weights, chances)]
        kept = (1 - 0.002)/halves(evidence)
        self.weights = [e*kept + 0.002/8 for e in evidence]
        self.count += 1
        for i in range(8):
            rate = max(self.rates[i], 1/(self.count + 1))
            self.means[i] = self.means[i] + rate*(abs(x - self.centers[i]) - self.means[i])
            self.scales[i] = max(self.means[i]*0.72, 0.02)


# ---- One sample

class Channel:
    """The predictor of one channel."""

    def __init__(self, k, channels, n_codes):
        self.limits = float(-(n_codes//2)), float(n_codes - 1 - n_codes//2)
        self.problems = [LeastSquares(k, channels, (16, 32), 0.98, 16),
                         LeastSquares(k, channels, (16, 32, 64, 128, 256), 0.999, 128)]
        self.filters = [Filter(256, 0.012), Filter(32, 0.005), Filter(16, 0.008)]
        self.errors, self.stage_errors, self.stack, self.parts = [1e-3]*7, [1e-3]*4, Stack(11), Parts(n_codes)

    def predict(self, past):
        self.predictions = [clip(p, self.limits) for problem in self.problems for p in problem.predictions(past)]
        self.stages = [soft_blend(self.predictions, self.errors)]
        for f in self.filters: self.stages.append(clip(self.stages[-1] + f.expect(), self.limits))
        second = clip(self.stack.predict(self.predictions + self.stages), self.limits)
        self.parts.centers = [soft_blend(self.stages, self.stage_errors)]*4 + [second]*4

    def learn(self, code):
        x = float(code)
        self.parts.learn(x)
        residual = x - self.stages[0]
        for f in self.filters: residual = f.learn(residual)
        self.stack.learn(x)
        self.errors = [0.95*e + (x - p)*(x - p) for e, p in zip(self.errors, self.predictions)]
        self.stage_errors = [0.95*e + (x - p)*(x - p) for e, p in zip(self.stage_errors, self.stages)]


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as coded, open(sys.argv[2], "xb") as original: original.write(decode(coded.read()))
