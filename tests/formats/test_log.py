"""Tests of the parser of Caffe's log, with lines that real Caffe 1.0 wrote."""

import datetime
import math

import pytest

from transfer_caffe.formats.log import LogParser, Row, parse_log, read_log

HEAD = """\
I1123 13:41:53.253799  9956 caffe.cpp:197] Use CPU.
I1123 13:41:53.253891  9956 solver.cpp:45] Initializing solver from parameters:
test_iter: 20
max_iter: 50
I1123 13:41:53.254499  9956 db_lmdb.cpp:35] Opened lmdb db
I1123 13:41:53.255223  9956 solver.cpp:57] Solver scaffolding done.
I1123 13:41:53.255229  9956 caffe.cpp:239] Starting Optimization
I1123 13:41:53.255231  9956 solver.cpp:289] Solving tiny
"""
START = """\
I1123 13:41:54.000000  9956 solver.cpp:347] Iteration 0, Testing net (#0)
I1123 13:41:54.100000  9957 blocking_queue.cpp:49] Waiting for data
I1123 13:41:54.200000  9956 solver.cpp:414]     Test net output #0: accuracy = 0.22
I1123 13:41:54.200000  9956 solver.cpp:414]     Test net output #1: loss = 1.39581 (* 1 = 1.39581 loss)
I1123 13:41:54.300000  9956 solver.cpp:239] Iteration 0 (-7.61554e+35 iter/s, 0s/5 iters), loss = 1.425
I1123 13:41:54.300000  9956 solver.cpp:258]     Train net output #0: loss = 1.425 (* 1 = 1.425 loss)
I1123 13:41:54.300000  9956 sgd_solver.cpp:112] Iteration 0, lr = 0.1
I1123 13:41:54.800000  9956 solver.cpp:239] Iteration 5 (5 iter/s, 0s/5 iters), loss = 1.38847
I1123 13:41:54.800000  9956 sgd_solver.cpp:112] Iteration 5, lr = 0.1
I1123 13:41:55.300000  9956 solver.cpp:239] Iteration 10 (5 iter/s, 0s/5 iters), loss = 1.3897
I1123 13:41:55.300000  9956 sgd_solver.cpp:112] Iteration 10, lr = 0.1
"""
MIDDLE = """\
I1123 13:41:56.100000  9956 solver.cpp:464] Snapshotting to binary proto file snap/net_iter_20.caffemodel
I1123 13:41:56.200000  9956 sgd_solver.cpp:284] Snapshotting solver state to binary proto file net_iter_20.solverstate
I1123 13:41:56.300000  9956 solver.cpp:347] Iteration 20, Testing net (#0)
I1123 13:41:56.900000  9956 solver.cpp:414]     Test net output #0: accuracy = 0.25
I1123 13:41:56.900000  9956 solver.cpp:414]     Test net output #1: loss = 1.38525 (* 1 = 1.38525 loss)
I1123 13:41:57.300000  9956 solver.cpp:239] Iteration 20 (5 iter/s, 0s/5 iters), loss = 1.38712
I1123 13:41:57.300000  9956 sgd_solver.cpp:112] Iteration 20, lr = 0.05
"""
END = """\
I1123 13:41:58.000000  9956 solver.cpp:327] Iteration 40, loss = 1.34673
I1123 13:41:58.000000  9956 solver.cpp:347] Iteration 40, Testing net (#0)
I1123 13:41:58.200000  9956 solver.cpp:414]     Test net output #0: accuracy = 0.31
I1123 13:41:58.200000  9956 solver.cpp:414]     Test net output #1: loss = 1.34583 (* 1 = 1.34583 loss)
I1123 13:41:58.200000  9956 solver.cpp:332] Optimization Done.
I1123 13:41:58.200000  9956 caffe.cpp:250] Optimization Done.
"""


def test_a_whole_run_gives_a_row_a_test():
    log = parse_log(HEAD + START + MIDDLE + END)
    assert log.rows() == [
        Row(0, 0.22, 1.39581, 1.425, 0.1),
        Row(20, 0.25, 1.38525, 1.38712, 0.05),
        Row(40, 0.31, 1.34583, 1.34673, None),  # the last iteration has no lr line
    ]
    assert log.done and not log.stopped_early and log.bad_number is None and not log.errors
    assert log.iteration == 40


def test_times_leave_out_intervals_with_tests_and_snapshots_and_the_rates_that_caffe_prints():
    log = parse_log(HEAD + START + MIDDLE + END)
    # 0 -> 5 and 5 -> 10 took half a second each, 20 -> 40 took 0.7 s; 10 -> 20 contains a snapshot and a test
    assert [round(seconds, 6) for seconds in log.display_seconds] == [0.1, 0.1, 0.035]
    assert round(log.seconds_per_iteration or 0, 6) == 0.1
    assert [round(seconds, 6) for seconds in log.test_seconds] == [0.2, 0.6, 0.2]
    assert round(log.seconds, 6) == 4.946201


def test_outputs_are_found_by_name_not_by_number():
    swapped = START.replace("#0: accuracy = 0.22", "#0: loss = 1.5 (* 1 = 1.5 loss)").replace(
        "#1: loss = 1.39581 (* 1 = 1.39581 loss)", "#1: accuracy5 = 0.9\n" + PREFIX + "#2: accuracy = 0.33"
    )
    assert parse_log(HEAD + swapped).rows() == [Row(0, 0.33, 1.5, 1.425, 0.1)]


PREFIX = "I1123 13:41:54.200000  9956 solver.cpp:414]     Test net output "


def test_a_log_of_2014_is_read():
    log = parse_log(
        "I0917 07:34:13.659520 22837 solver.cpp:294] Iteration 0, Testing net (#0)\n"
        "I0917 07:34:14.659520 22837 solver.cpp:343]     Test score #0: 0.6\n"
        "I0917 07:34:14.659520 22837 solver.cpp:343]     Test score #1: 1.7\n"
        "I0917 07:34:15.659520 22837 solver.cpp:204] Iteration 0, loss = 6.9\n"
        "I0917 07:34:15.659520 22837 sgd_solver.cpp:512] Iteration 0, lr = 0.01\n"
    )
    assert log.rows() == [Row(0, 0.6, 1.7, 6.9, 0.01)]


def test_a_run_that_goes_on_replaces_the_iterations_it_repeats_and_says_how_it_ended():
    stopped = (
        "I1123 13:41:57.300000  9956 solver.cpp:311] Optimization stopped early.\n"
        "I1123 13:41:57.300000  9956 caffe.cpp:250] Optimization Done.\n"
    )
    first = parse_log(HEAD + START + MIDDLE + stopped)
    assert first.done and first.stopped_early
    again = (MIDDLE + END).replace("0.25", "0.26").replace(" 9956 ", " 9999 ").replace("13:41", "14:41")
    both = parse_log(HEAD + START + MIDDLE + stopped + again)
    assert [row.test_accuracy for row in both.rows()] == [0.22, 0.26, 0.31]
    assert both.done and not both.stopped_early
    assert round(both.seconds, 2) == round(57.3 - 53.253799 + 58.2 - 56.1, 2)  # not the hour in between


def test_the_drivers_line_opens_a_new_run():
    mark = "I1123 15:00:00.000000     7 driver.py:1] Starting caffe train\n"
    log = parse_log(HEAD + START + MIDDLE + END + mark)
    assert not log.done
    assert log.rows()[-1].iteration == 40


def test_a_line_that_was_cut_off_is_not_read():
    cut = START.rindex("loss = 1.39581") + len("loss = 1.3")
    assert parse_log(HEAD + START[:cut]).rows() == [Row(0, 0.22, None, None, None)]


def test_a_test_without_a_result_did_not_happen():
    assert parse_log(HEAD + START.splitlines(keepends=True)[0]).rows() == []


def test_a_log_may_be_fed_in_pieces():
    text, parser = HEAD + START + MIDDLE + END, LogParser()
    for at in range(0, len(text), 7):
        parser.feed(text[at : at + 7])
    parser.finish()
    assert parser.log == parse_log(text)


def test_a_loss_that_is_not_a_number_is_reported_with_its_iteration():
    assert math.isnan(parse_log(START.replace("1.38847", "nan")).train_losses[5])
    assert parse_log(START.replace("1.38847", "-nan")).bad_number == "the training loss is nan at iteration 5"
    assert parse_log(START.replace("loss = 1.39581", "loss = inf")).bad_number == "the test loss is inf at iteration 0"


def test_failed_checks_error_lines_and_ignored_layers_are_kept(tmp_path):
    path = tmp_path / "train.log"
    path.write_bytes(
        HEAD.encode()
        + b"I1123 13:41:53.000000  9956 net.cpp:746] Ignoring source layer fc3\n"
        + b"F1123 13:41:53.000000  9956 net.cpp:757] Cannot copy param 0 weights from layer 'fc3'; shape mismatch.\n"
        + b"*** Check failure stack trace: ***\n    @  0x7f  google::LogMessage::Fail()\n"
        + b"python -m transfer_caffe.engine: error: d\xffta/train_lmdb: no such file or directory\n"
    )
    log = read_log(path)
    assert log.ignored_layers == ["fc3"]
    assert [error[:12] for error in log.errors] == ["Cannot copy ", "python -m tr"]


class _Today(datetime.date):
    """A date whose today is the last day of December and then the first of January."""

    days = iter(())

    @classmethod
    def today(cls):
        return next(cls.days)


@pytest.mark.parametrize("year", [2027, 2028])
def test_a_run_over_new_year_takes_as_long_as_its_clock_says(monkeypatch, year):
    monkeypatch.setattr(_Today, "days", iter([datetime.date(year, 12, 31)] + [datetime.date(year + 1, 1, 1)] * 99))
    monkeypatch.setattr(datetime, "date", _Today)
    lines = [
        "I1231 23:59:50.000000  9956 solver.cpp:289] Solving tiny",
        "I1231 23:59:55.000000  9956 solver.cpp:239] Iteration 0 (1 iter/s, 0s/5 iters), loss = 1.4",
        "I0101 00:00:05.000000  9956 solver.cpp:239] Iteration 5 (1 iter/s, 0s/5 iters), loss = 1.3",
        "I0101 00:00:06.000000  9956 solver.cpp:347] Iteration 5, Testing net (#0)",
        "I0101 00:00:08.000000  9956 solver.cpp:414]     Test net output #0: accuracy = 0.22",
        "I0101 00:00:10.000000  9956 solver.cpp:332] Optimization Done.",
    ]
    log = parse_log("\n".join([*lines, ""]))
    assert log.seconds == pytest.approx(20)
    assert log.display_seconds == [pytest.approx(2)] and log.test_seconds == [pytest.approx(2)]


def test_the_mean_of_the_last_training_losses_is_that_of_the_displays_in_the_window():
    log = parse_log(HEAD + START)
    assert log.train_loss_over_last(10) == (1.38847 + 1.3897) / 2
    assert parse_log("").train_loss_over_last(10) is None
