#!/usr/bin/env python3
"""Writes python.json: oracles of Python packages, in the schema of oracles.json.

    python tests/golden/stats/make.py

Needs numpy, scipy, statsmodels, scikit-learn, scikit-survival and lifelines (PyPI).
"""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import sklearn
import statsmodels
from lifelines import KaplanMeierFitter
from lifelines.utils import restricted_mean_survival_time
from scipy import stats
from scipy.stats import _resampling
from sklearn import metrics
from sksurv.metrics import concordance_index_ipcw, cumulative_dynamic_auc
from sksurv.util import Surv
from statsmodels.nonparametric.smoothers_lowess import lowess
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

HERE = Path(__file__).resolve().parent
ORACLES = {}


def table(name):
    return pd.read_csv(HERE / "data" / name)


def oracle(name, fn, data, args, expect, source, tol=1e-9):
    def plain(v):
        if isinstance(v, dict):
            return {k: plain(w) for k, w in v.items()}
        if isinstance(v, (list, tuple, np.ndarray, pd.Series)):
            return [plain(w) for w in v]
        if isinstance(v, (bool, np.bool_)):
            return bool(v)
        if v is None or isinstance(v, str):
            return v
        v = float(v)
        return int(v) if v == int(v) and abs(v) < 1e15 else v

    ORACLES[name] = {"id": name, "fn": fn, "data": data, "args": plain(args), "expect": plain(expect),
                     "source": source, "tol": tol}


def two_groups(name, a, b):
    """All tests of two lists of numbers."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    means = CompareMeans(DescrStatsW(a), DescrStatsW(b))
    welch = stats.ttest_ind(a, b, equal_var=False)
    student = stats.ttest_ind(a, b)
    ties = len(np.unique(np.r_[a, b])) < len(a) + len(b)
    exact = not ties and len(a) < 50 and len(b) < 50
    u = stats.mannwhitneyu(a, b, method="exact" if exact else "asymptotic")
    kruskal = stats.kruskal(a, b)
    pooled = np.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2))
    oracle(name, "two_groups", {}, {"a": a, "b": b}, {
        "welch": {"t": welch.statistic, "df": welch.df, "p": welch.pvalue,
                  "ci95": means.tconfint_diff(usevar="unequal")},
        "student": {"t": student.statistic, "df": student.df, "p": student.pvalue,
                    "ci95": means.tconfint_diff(usevar="pooled")},
        "mann_whitney": {"u": u.statistic, "p": u.pvalue, "exact": exact,
                         "rank_biserial": 2 * u.statistic / (len(a) * len(b)) - 1},
        "kruskal_wallis": {"h": kruskal.statistic, "df": 1, "p": kruskal.pvalue},
        "cohen_d": (a.mean() - b.mean()) / pooled,
    }, "scipy ttest_ind, mannwhitneyu, kruskal; statsmodels CompareMeans")


def groups():
    aml = table("birthwt.csv")
    low = aml[aml.low == 1]
    high = aml[aml.low == 0]
    two_groups("two_groups_birthwt_lwt", low.lwt, high.lwt)
    rng = np.random.default_rng(3)
    two_groups("two_groups_small", rng.normal(0, 1, 9).round(6), rng.normal(0.8, 2, 13).round(6))
    two_groups("two_groups_exact_far", rng.normal(0, 1, 12).round(6), rng.normal(4, 1, 11).round(6))
    by_race = [aml[aml.race == r].lwt.to_numpy(float) for r in (1, 2, 3)]
    k = stats.kruskal(*by_race)
    oracle("kruskal_birthwt_race", "kruskal_wallis", {}, {"groups": by_race},
           {"h": k.statistic, "df": 2, "p": k.pvalue}, "scipy kruskal")
    p = rng.uniform(0, 1, 20).round(6) ** 3
    oracle("false_discovery", "false_discovery", {}, {"p": p},
           {"q": stats.false_discovery_control(p)}, "scipy false_discovery_control")


def tables():
    cases = {
        "2x2": [[12, 5], [29, 2]],
        "2x2_sparse": [[3, 0], [1, 14]],
        "2x2_even": [[120, 130], [99, 151]],
        "2x3": [[10, 20, 30], [6, 9, 17]],
        "3x2_empty_row": [[5, 9], [0, 0], [11, 2]],
    }
    for name, counts in cases.items():
        kept = [r for r in counts if sum(r)]
        expect = {}
        for key, yates in (("pearson", False), ("yates", True)):
            if yates and len(kept[0]) != 2:
                continue
            c = stats.chi2_contingency(kept, correction=yates)
            expect[key] = {"chi2": c.statistic, "df": c.dof, "p": c.pvalue, "least_expected": c.expected_freq.min()}
        if len(counts) == 2 and len(counts[0]) == 2:
            expect["fisher_p"] = stats.fisher_exact(counts).pvalue
        oracle(f"counts_{name}", "contingency", {}, {"counts": counts}, expect,
               "scipy chi2_contingency, fisher_exact")


def smooth():
    wdbc = table("wdbc_pred.csv").iloc[:160]
    for score in ("p_a", "p_b"):
        x, y = wdbc[score].to_numpy(), wdbc.y.to_numpy(float)
        out = lowess(y, x, frac=2 / 3, it=0, delta=0.01 * (x.max() - x.min()), return_sorted=False)
        oracle(f"lowess_{score}", "lowess", {"file": "wdbc_pred.csv", "x": score, "y": "y", "rows": 160}, {},
               {"smooth": out}, "statsmodels lowess, it=0", 1e-9)


def bootstraps():
    rng = np.random.default_rng(11)
    data = np.exp(rng.normal(0, 1, 40)).round(6)
    values = np.array([rng.choice(data, 40).mean() for _ in range(400)]).round(9)
    low, high, _ = _resampling._bca_interval((data,), lambda x, axis=-1: x.mean(axis=axis), -1, 0.025, values, 40, np)
    ends = [np.percentile(values, 100 * v) for v in (low, high)]
    jackknife = [(data.sum() - v) / 39 for v in data]
    oracle("bca_mean", "bca", {}, {"values": values, "estimate": data.mean(), "jackknife": jackknife},
           {"ci95": ends}, "scipy.stats.bootstrap(method='BCa'), its interval of given resamples", 1e-9)

    fat = table("bodyfat.csv").dropna()
    x, y = fat.waistcirc.to_numpy(float), fat.DEXfat.to_numpy(float)
    rho = []
    for _ in range(4000):
        rows = rng.integers(0, len(x), len(x))
        rho.append(stats.spearmanr(x[rows], y[rows]).statistic)
    oracle("spearman_bootstrap_bodyfat", "spearman_bootstrap",
           {"file": "bodyfat.csv", "x": "waistcirc", "y": "DEXfat"}, {"reps": 4000},
           {"mean": np.mean(rho), "sd": np.std(rho, ddof=1), "ci95": np.percentile(rho, [2.5, 97.5])},
           "numpy resampling, scipy spearmanr", 0.012)

    sah = table("aSAH.csv")
    score, label = sah.s100b.to_numpy(float), sah.y.to_numpy(int)
    pos, neg = score[label == 1], score[label == 0]
    grid = np.array([0.1, 0.25, 0.5, 0.75, 0.9])

    def sensitivity(p, n):
        """Linear between the points of the curve, the upper end of a vertical step."""
        cuts = np.unique(np.r_[p, n])[::-1]
        fpr = np.r_[0, [(n >= c).mean() for c in cuts]]
        tpr = np.r_[0, [(p >= c).mean() for c in cuts]]
        keep = np.r_[fpr[1:] != fpr[:-1], True]  # the last of equal rates
        return np.interp(1 - grid, fpr[keep], tpr[keep])

    drawn = np.array([sensitivity(rng.choice(pos, len(pos)), rng.choice(neg, len(neg))) for _ in range(4000)])
    oracle("roc_band_asah", "roc_band", {"file": "aSAH.csv", "score": "s100b", "y": "y"},
           {"specificities": grid, "reps": 4000},
           {"sensitivity": sensitivity(pos, neg), "lower": np.percentile(drawn, 2.5, axis=0),
            "upper": np.percentile(drawn, 97.5, axis=0)},
           "numpy, stratified resampling", 0.03)


def classes():
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, 60)
    raw = rng.dirichlet([1, 1, 1], 60)
    raw[np.arange(60), truth] += 0.3
    p = (raw / raw.sum(axis=1, keepdims=True)).round(6)
    called = p.argmax(axis=1)
    oracle("multiclass", "multiclass", {}, {"scores": p.ravel(), "truth": truth, "classes": 3}, {
        "auc": [metrics.roc_auc_score(truth == k, p[:, k]) for k in range(3)],
        "macro_auc": np.mean([metrics.roc_auc_score(truth == k, p[:, k]) for k in range(3)]),
        "accuracy": metrics.accuracy_score(truth, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, called),
        "macro_f1": metrics.f1_score(truth, called, average="macro"),
        "kappa": metrics.cohen_kappa_score(truth, called),
    }, "scikit-learn")
    sah = table("aSAH.csv")
    precision, recall, _ = metrics.precision_recall_curve(sah.y, sah.s100b)
    oracle("precision_recall_asah", "precision_recall", {"file": "aSAH.csv", "score": "s100b", "y": "y"}, {}, {
        "average_precision": metrics.average_precision_score(sah.y, sah.s100b),
        "precision": precision[:-1][::-1], "recall": recall[:-1][::-1],
    }, "scikit-learn precision_recall_curve")


def survival():
    gbsg = table("GBSG2.csv")
    time, event, risk = "time", "cens", "pnodes"
    y = Surv.from_arrays(gbsg[event].astype(bool), gbsg[time])
    # scikit-survival weights by G(t), this program by G(t-): alike where no event time is a censoring time.
    own = gbsg.iloc[:120].drop_duplicates(time)
    z = Surv.from_arrays(own[event].astype(bool), own[time])
    for tau in (1000.0, 2000.0):
        c = concordance_index_ipcw(z, z, own[risk], tau=tau)
        oracle(f"uno_{int(tau)}", "uno_listed", {},
               {"time": own[time], "event": own[event], "risk": own[risk], "tau": tau},
               {"uno": c[0]}, "scikit-survival concordance_index_ipcw", 1e-9)
    times = np.quantile(gbsg[time][gbsg[event] == 1], [0.25, 0.5, 0.75])
    auc, _ = cumulative_dynamic_auc(y, y, gbsg[risk], times)
    oracle("auc_at_gbsg", "time_dependent_auc",
           {"file": "GBSG2.csv", "time": time, "event": event, "risk": risk}, {"times": times},
           {"auc": auc}, "scikit-survival cumulative_dynamic_auc", 1e-9)
    lung = table("veteran.csv")
    fit = KaplanMeierFitter().fit(lung.time, lung.status)
    oracle("rmst_veteran", "rmst", {"file": "veteran.csv", "time": "time", "event": "status"}, {"tau": 300.0},
           {"rmst": [restricted_mean_survival_time(fit, t=300.0)]}, "lifelines", 1e-9)


def main():
    for part in (groups, tables, smooth, bootstraps, classes, survival):
        part()
    meta = {"numpy": np.__version__, "scipy": scipy.__version__, "statsmodels": statsmodels.__version__,
            "scikit-learn": sklearn.__version__}
    text = json.dumps({"meta": meta, "oracles": ORACLES}, indent=1)
    # Lists of numbers on one line each.
    import re

    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    (HERE / "python.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
