"""The Control Center: Nami's integrations page for people without a terminal, on top of ``Operations``.

It sees no table and no file: what a page shows or does is a method of ``nami_amp_pipeline.operations.api.Operations``.

How a page is added:

1. A module in ``pages/`` with handlers ``def show(visit: Visit) -> Response`` (plain functions; they run in a thread),
   and ``routes``, a list of ``page(path, show, name=…)`` (reads) and ``action(path, act, name=…)`` (GET shows a form or
   a question, POST acts and needs the role *editor*). Paths of an app begin with ``/apps/{app}/``, those of an
   integration with ``/apps/{app}/integrations/{integration}/``; ``visit.app`` and ``visit.integration`` read them, or
   answer 404.
2. A line in ``nami_amp_pipeline.control_center.pages.PAGES``. With ``navigation`` in the module, it is on the left too.
3. A template in ``templates/`` that extends ``frame.html`` and fills ``title`` and ``main``; the handler ends with
   ``visit.render("x.html", …)`` or ``visit.redirect("name", …, done="notice")``. Notices are in ``notices.py``.
   ``{{ address("name", app=…) }}`` is the address of a page. ``macros.html`` has times, numbers, tables, pagers,
   fields and errors. What is inside ``<div id="live">`` is read again every ten seconds.
4. Lists are cut by :mod:`.paging`: keysets, never offsets.

The content security policy allows no inline script and no inline style: charts are SVG with attributes and classes.
"""
