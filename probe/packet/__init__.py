# SPDX-License-Identifier: EUPL-1.2 OR GPL-2.0-or-later
