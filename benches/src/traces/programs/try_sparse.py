import numpy as np
import scipy.sparse as sparse
import scipy.sparse.linalg, scipy.sparse.csgraph

a = sparse.diags([1, -2, 1], [-1, 0, 1], shape=(200, 200), format="csc")
x = scipy.sparse.linalg.spsolve(a, np.ones(200))
assert np.allclose(a @ x, 1)
count, _ = scipy.sparse.csgraph.connected_components(a)
print(count)
