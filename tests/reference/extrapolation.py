"""Scalar reference of operations on checkpoints: lists of Python floats, one loop after the other."""

import math

Vector = list[float]
Matrix = list[Vector]


def extrapolate(base: Vector, tuned: Vector, alpha: float) -> Vector:
    """a + alpha (b - a)."""
    return [a + alpha * (b - a) for a, b in zip(base, tuned, strict=True)]


def average(tensors: list[Vector], weights: Vector) -> Vector:
    return [
        math.fsum(w * tensor[index] for w, tensor in zip(weights, tensors, strict=True))
        for index in range(len(tensors[0]))
    ]


def line(values: Vector, steps: list[int]) -> tuple[float, float]:
    """Intercept and slope by the normal equations, with sums that are not centred."""
    n, st, sy = len(steps), math.fsum(steps), math.fsum(values)
    stt = math.fsum(t * t for t in steps)
    sty = math.fsum(t * y for t, y in zip(steps, values, strict=True))
    slope = (n * sty - st * sy) / (n * stt - st * st)
    return (sy - slope * st) / n, slope


def line_fit(tensors: list[Vector], steps: list[int], at: float) -> tuple[Vector, float]:
    """Predictions, and R^2 over all weights together."""
    predictions, residual, total = [], 0.0, 0.0
    for index in range(len(tensors[0])):
        values = [tensor[index] for tensor in tensors]
        intercept, slope = line(values, steps)
        mean = math.fsum(values) / len(values)
        predictions.append(intercept + slope * at)
        residual += math.fsum((y - intercept - slope * t) ** 2 for t, y in zip(steps, values, strict=True))
        total += math.fsum((y - mean) ** 2 for y in values)
    return predictions, 1.0 - residual / total if total else 1.0


def timber(base: Matrix, tuned: Matrix, keep: float) -> Matrix:
    """A + sum_i c_i s_i u_i v_i^T with c_i 1 for the first k = ceil(exp(entropy of s / sum s)) and `keep` after."""
    delta = [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(base, tuned, strict=True)]
    triples = singular_triples(delta)
    rank = effective_rank([value for value, _, _ in triples])
    result = [list(row) for row in base]
    for number, (value, left, right) in enumerate(triples):
        factor = value if number < rank else keep * value
        for i, row in enumerate(result):
            for j in range(len(row)):
                row[j] += factor * left[i] * right[j]
    return result


def effective_rank(values: Vector) -> int:
    total = math.fsum(values)
    return math.ceil(math.exp(-math.fsum(s / total * math.log(s / total) for s in values if s > 0.0)))


def singular_triples(matrix: Matrix, sweeps: int = 60) -> list[tuple[float, Vector, Vector]]:
    """Singular values, the largest first, with left and right vectors, by one-sided Jacobi rotations of the columns."""
    columns = [list(column) for column in zip(*matrix, strict=True)]
    rights = [[float(i == j) for i in range(len(columns))] for j in range(len(columns))]
    for _ in range(sweeps):
        for p in range(len(columns)):
            for q in range(p + 1, len(columns)):
                _rotate(columns, rights, p, q)
    triples = []
    for column, right in zip(columns, rights, strict=True):
        value = math.sqrt(_dot(column, column))
        triples.append((value, [each / value if value else 0.0 for each in column], right))
    return sorted(triples, key=lambda triple: -triple[0])


def _rotate(columns: Matrix, rights: Matrix, p: int, q: int) -> None:
    """Makes columns p and q orthogonal."""
    alpha, beta = _dot(columns[p], columns[p]), _dot(columns[q], columns[q])
    gamma = _dot(columns[p], columns[q])
    if gamma == 0.0:
        return
    zeta = (beta - alpha) / (2.0 * gamma)
    tangent = math.copysign(1.0, zeta) / (abs(zeta) + math.sqrt(1.0 + zeta * zeta))
    cosine = 1.0 / math.sqrt(1.0 + tangent * tangent)
    for vectors in (columns, rights):
        first, second = vectors[p], vectors[q]
        vectors[p] = [cosine * (x - tangent * y) for x, y in zip(first, second, strict=True)]
        vectors[q] = [cosine * (tangent * x + y) for x, y in zip(first, second, strict=True)]


def _dot(first: Vector, second: Vector) -> float:
    return math.fsum(x * y for x, y in zip(first, second, strict=True))
