// What fastdiff._host knows of a scheduler's loop, beside tensors.
#pragma once

#include "stepper.h"

namespace fastdiff {

// Draws nothing; draws noise, or asks Python for it; is not for the short way.
enum class Row : char { kPlain = 0, kDraws = 1, kLong = 2, kAsks = 3 };

// Names of attributes of runs and their parts, of what a loop remembers, and of arguments.
struct LoopNames {
    PyObject* next = PyUnicode_InternFromString("next");
    PyObject* place = PyUnicode_InternFromString("place");
    PyObject* first = PyUnicode_InternFromString("first");
    PyObject* stride = PyUnicode_InternFromString("stride");
    PyObject* fresh = PyUnicode_InternFromString("fresh");
    PyObject* returned = PyUnicode_InternFromString("returned");
    PyObject* version = PyUnicode_InternFromString("version");
    PyObject* state = PyUnicode_InternFromString("state");
    PyObject* to_float = PyUnicode_InternFromString("float");
    PyObject* ring = PyUnicode_InternFromString("ring");
    PyObject* make_ring = PyUnicode_InternFromString("make_ring");
    PyObject* samples = PyUnicode_InternFromString("samples");
    PyObject* moved = PyUnicode_InternFromString("moved");
    PyObject* memory = PyUnicode_InternFromString("memory");
    PyObject* versions = PyUnicode_InternFromString("versions");
    PyObject* tensor_version = PyUnicode_InternFromString("_version");
    PyObject* memo = PyUnicode_InternFromString("_memo");
    PyObject* plain = PyUnicode_InternFromString("_plain");
    PyObject* step_index = PyUnicode_InternFromString("_step_index");
    PyObject* begin_index = PyUnicode_InternFromString("_begin_index");
    PyObject* run = PyUnicode_InternFromString("_run");
    PyObject* noise = PyUnicode_InternFromString("noise");
    PyObject* attributes = PyUnicode_InternFromString("__dict__");
    PyObject* extras = PyUnicode_InternFromString("extras");
    PyObject* source = PyUnicode_InternFromString("_source");
    PyObject* lazy_versions = PyUnicode_InternFromString("_versions");
    PyObject* generator = PyUnicode_InternFromString("generator");
    PyObject* return_dict = PyUnicode_InternFromString("return_dict");
    PyObject* dtype_only = PyTuple_Pack(1, PyUnicode_InternFromString("dtype"));
};

inline const LoopNames& loop_names() {
    static const LoopNames all;
    return all;
}

// What stays the same over the runs of a plan on tensors of one kind; short.py fills it.
struct Way {
    py::object take;  // the stepper of state `stepper`
    const Stepper* stepper;
    py::object output_dtype, result_dtype;
    py::object options;      // step()'s arguments but for generator and return_dict
    py::object return_dict;  // its default
    py::object usual;        // () -> whether the kernel may be called at all
    py::object empty_like;
    py::object into;    // (address, numel, dtype, generator) -> whether noise was drawn there
    py::object noise;   // (scheduler, line, sample, generator) -> the noise of a step
    py::object rest;    // (run, given, sample, noise) -> the next sample, by the kernel called another way
    py::object finish;  // (scheduler, line, returned, images, return_dict) -> what step() returns
    py::object lazy;    // the class of a tuple whose further images are computed when somebody asks
    py::object draw_dtype, extra_dtype;
    py::object counts;  // the attribute of the scheduler that counts steps, or None
    py::tuple lines;
    std::string rows;   // a Row each
    std::string seen;   // whether each row begins from the sample as the model saw it
    std::string backs;  // how many samples back each row's anchor lies, 0 for none
    int64_t begin;      // the step of the first row
    int64_t draw_type;  // of draw_dtype
    int64_t reach;      // how many samples are kept
    bool counted;       // whether counts is _step_index, which must fit
    bool generator;     // whether step() takes one
    bool ring;          // whether values are kept
    bool wide;          // whether there is a state of higher precision behind the sample
    bool reuses;        // whether that may be written over
};

// One step: what it was called with (borrowed), and its row.
struct Step {
    const Way& way;
    PyObject *scheduler, *seen, *run, *output, *sample, *given;
    int64_t row;
};

inline py::object steal(PyObject* made) { return py::reinterpret_steal<py::object>(made); }

inline py::object attribute(PyObject* of, PyObject* name) { return steal(PyObject_GetAttr(of, name)); }

inline py::object integer(int64_t value) { return steal(PyLong_FromLongLong(value)); }

// An integer attribute, or -1.
inline int64_t number(PyObject* of, PyObject* name) {
    const py::object found = attribute(of, name);
    return found && PyLong_CheckExact(found.ptr()) ? PyLong_AsLongLong(found.ptr()) : -1;
}

}  // namespace fastdiff
